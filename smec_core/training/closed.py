"""The closed form that a training starts from: chosen by cross-fitting over folds of the judgements.

Shapes: Q queries, D dims, K dims of all prefixes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smec_core.config import Favour, TrainConfig
from smec_core.data.folds import document_folds
from smec_core.data.judgements import Judgements
from smec_core.data.seen import LEAST_QUERIES
from smec_core.distributed.group import rows_of_rank
from smec_core.distributed.resident import Node, Rows
from smec_core.evaluation.dev_set import make_dev_set
from smec_core.model.adapter import FrozenStage
from smec_core.model.closed_forms import ClosedForm, Moments
from smec_core.model.pca import Gram

FORMS = (
    ClosedForm("pca"),
    ClosedForm("white", "pooled", 0.15),
    ClosedForm("white", "pooled", 0.3),
    *(
        ClosedForm("within", moment, power, shrinkage)
        for moment in ("docs", "pooled")
        for power, shrinkage in ((1.0, 0.1), (1.0, 0.3), (1.0, 0.8), (0.5, 0.3), (0.5, 0.5))
    ),
)
"""What is tried; the simplest first, which is taken where several are as good."""
WITHOUT_LABELS = ClosedForm("pca")
FOLDS, FOLDS_WIDE = 4, 3
WIDE = 1024
"""Above so many dims there are fewer folds."""
FOLD_DOCS, FOLD_QUERIES = 20_000, 2000
"""Most documents that a fold is scored against, beside judged ones, and most queries of each of its parts."""


class Moment:
    """Second moments of a training's rows: of the documents once, and of what it learns from for each set of labels."""

    def __init__(self, docs: Rows, queries: Rows, node: Node) -> None:
        """Sums over all documents. Collective."""
        self._docs, self._queries, self._node = docs, queries, node
        gram = Gram(docs.dim)
        for block_ND in docs.own_blocks():
            gram.add(block_ND)
        self.docs_DD = node.group.sum_(gram.sum_DD) / docs.rows

    def of(self, judgements: Judgements | None) -> Moments:
        """With those of the judged queries and of their pairs. Collective."""
        if judgements is None:
            return Moments(self.docs_DD)
        relevant_J = judgements.score_J > 0
        query_P, doc_row_P = judgements.query_J[relevant_J], judgements.doc_row_J[relevant_J]
        self._docs.prepare(doc_row_P)
        self._queries.prepare(judgements.query_row_Q)
        group, dim = self._node.group, self._docs.dim
        sums_2DD = torch.zeros(2, dim, dim, dtype=torch.float64)
        queries = slice(*rows_of_rank(len(judgements), group.rank, group.size))
        x_QD = self._queries.take(torch.from_numpy(judgements.query_row_Q[queries])).double()
        sums_2DD[0] = x_QD.T @ x_QD
        pairs = slice(*rows_of_rank(len(query_P), group.rank, group.size))
        # the pairs of a query weigh 1 together
        weight_P = 1 / np.bincount(query_P, minlength=len(judgements))[query_P[pairs]]
        query_row_P = judgements.query_row_Q[query_P[pairs]]
        differences_PD = (
            self._queries.take(torch.from_numpy(query_row_P)) - self._docs.take(torch.from_numpy(doc_row_P[pairs]))
        ).double()
        sums_2DD[1] = (differences_PD * torch.from_numpy(weight_P)[:, None]).T @ differences_PD
        queries_DD, differences_DD = group.sum_(sums_2DD) / len(judgements)
        return Moments(self.docs_DD, queries_DD, differences_DD)


class ClosedStart:
    """The closed form that the passes of a training start from: chosen once, and made of what each learns from."""

    def __init__(
        self,
        docs: Rows,
        queries: Rows,
        node: Node,
        config: TrainConfig,
        dims: Sequence[int],
        say: Callable[[str], None],
    ) -> None:
        """Takes what is needed, and computes nothing.

        Args:
            docs: unit document vectors.
            queries: unit query vectors.
            node: the ranks.
            config: settings of the method.
            dims: prefixes to score.
            say: takes a line that says what is chosen.
        """
        self._docs, self._queries, self._node = docs, queries, node
        self._config, self._dims, self._say = config, dims, say
        self._moment: Moment | None = None
        self._form = WITHOUT_LABELS

    def matrix(self, chosen_by: Judgements, learnt: Judgements) -> Tensor:
        """The matrix (D, D) to start from. Collective.

        Args:
            chosen_by: judgements to choose the form by, the first time.
            learnt: what the pass learns from.
        """
        if self._moment is None:
            self._moment = Moment(self._docs, self._queries, self._node)
            self._choose(self._moment, chosen_by)
        return self._node.group.from_first_(scaled(self._form.matrix(self._moment.of(learnt))))

    def _choose(self, moment: Moment, judgements: Judgements) -> None:
        tried = try_forms(moment, self._docs, self._queries, judgements, self._config, self._dims, self._node)
        self._form = best_form(tried, self._config.favour, is_trained=self._config.epochs != 0)
        reached = [
            f"{values_Q.mean():.4f} for {len(values_Q)} queries of {name} documents"
            for name, values_Q in zip(("recurring", "new"), tried[self._form], strict=True)
            if len(values_Q)
        ]
        self._say(f"start: {self._form}; on folds of the judgements, mean nDCG@10 over the dims {', '.join(reached)}")


class Tried(NamedTuple):
    """Scores of a closed form, mean over the prefixes, of the held-out queries of all folds.

    Attributes:
        recurring_Q: of those whose documents the fold has seen.
        new_Q: of those whose documents it has not.
    """

    recurring_Q: np.ndarray
    new_Q: np.ndarray


def try_forms(
    moment: Moment,
    docs: Rows,
    queries: Rows,
    judgements: Judgements,
    config: TrainConfig,
    dims: Sequence[int],
    node: Node,
    forms: Sequence[ClosedForm] = FORMS,
) -> dict[ClosedForm, Tried]:
    """Scores closed forms by cross-fitting. Collective.

    Args:
        moment: of the rows.
        docs: unit document vectors.
        queries: unit query vectors.
        judgements: all that may be learnt from or chosen by.
        config: seed.
        dims: prefixes to score.
        node: the ranks.
        forms: what to try.
    """
    small = config.model_copy(update={"dev_corpus": min(config.dev_corpus, FOLD_DOCS)})
    whole = make_dev_set(queries, docs, judgements, np.empty(0, np.int64), small, node)
    found: dict[ClosedForm, list[list[np.ndarray]]] = {form: [[], []] for form in forms}
    for fold in document_folds(judgements, FOLDS if docs.dim <= WIDE else FOLDS_WIDE, config.seed):
        moments = moment.of(fold.fit)
        parts = [(fold.recurring, np.empty(0, np.int64)), (fold.new, fold.left_out)]
        sets = [whole.of(queries, _first(part), left_out) if len(part) else None for part, left_out in parts]
        for form in forms:
            stage = FrozenStage(docs.dim, "linear", {"weight": form.matrix(moments).float().to(node.device)})
            for values, dev in zip(found[form], sets, strict=True):
                if dev is not None:
                    scores = dev.score(stage.apply, docs.dim, dims)
                    values.append(torch.stack([scores[dim] for dim in dims]).mean(0).cpu().numpy())
    return {form: Tried(*(np.concatenate([*parts, np.empty(0)]) for parts in both)) for form, both in found.items()}


def _first(judgements: Judgements) -> Judgements:
    """The first queries, if there are more than needed."""
    return judgements.select(np.arange(len(judgements)) < FOLD_QUERIES)


def best_form(tried: Mapping[ClosedForm, Tried], favour: Favour, is_trained: bool) -> ClosedForm:
    """The form to start from, or to keep. Parts of fewer than LEAST_QUERIES decide nothing.

    Training adds what recurs, so a start that generalises is worth more: among those that are as good as the best for
    new documents, within a standard error of the difference, it is the one that is best for recurring ones.

    Args:
        tried: what each form has reached.
        favour: `recurring` and `new` look at these alone.
        is_trained: whether training goes on from it; else it counts by the mean of both parts.
    """
    enough = [len(part) >= LEAST_QUERIES for part in next(iter(tried.values()))]
    wanted = [favour != "new", favour != "recurring"]
    counts = [has and is_wanted for has, is_wanted in zip(enough, wanted, strict=True)]
    counts = counts if any(counts) else enough
    if not any(counts):
        return WITHOUT_LABELS
    forms = list(tried)
    if is_trained and all(counts):
        best = max(forms, key=lambda form: tried[form].new_Q.mean())
        forms = [form for form in forms if _is_level(tried[best].new_Q - tried[form].new_Q)]
        counts = [True, False]

    def mean(form: ClosedForm) -> float:
        return sum(float(part_Q.mean()) for part_Q, does in zip(tried[form], counts, strict=True) if does)

    return max(forms, key=mean)


def _is_level(gain_Q: np.ndarray) -> bool:
    return float(gain_Q.mean()) <= float(gain_Q.std(ddof=1)) / len(gain_Q) ** 0.5


def scaled(matrix_DD: Tensor) -> Tensor:
    """The same map with the Frobenius norm of a rotation, from which learning rates are counted."""
    return (matrix_DD * (len(matrix_DD) ** 0.5 / torch.linalg.norm(matrix_DD))).float()
