"""The closed form that a training starts from: chosen by cross-fitting over folds of the judgements.

Shapes: Q queries, D dims, K dims of all prefixes.
"""

from collections.abc import Mapping, Sequence
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


def best_form(tried: Mapping[ClosedForm, Tried], favour: Favour) -> ClosedForm:
    """The form to start from.

    Training adds what recurs, so a start that generalises is worth more: among those that are as good as the best for
    new documents, within a standard error of the difference, it is the one that is best for recurring ones. Parts of
    fewer than LEAST_QUERIES decide nothing.

    Args:
        tried: what each form has reached.
        favour: `recurring` looks at recurring documents alone.
    """
    forms = list(tried)
    has_new, has_recurring = (
        len(part) >= LEAST_QUERIES for part in (tried[forms[0]].new_Q, tried[forms[0]].recurring_Q)
    )
    if not (has_new or has_recurring):
        return WITHOUT_LABELS
    if has_new and not (favour == "recurring" and has_recurring):
        best = max(forms, key=lambda form: tried[form].new_Q.mean())
        forms = [form for form in forms if _is_level(tried[best].new_Q - tried[form].new_Q)]
        if not has_recurring or favour == "new":
            return best
    return max(forms, key=lambda form: tried[form].recurring_Q.mean())


def _is_level(gain_Q: np.ndarray) -> bool:
    return float(gain_Q.mean()) <= float(gain_Q.std(ddof=1)) / len(gain_Q) ** 0.5


def scaled(matrix_DD: Tensor) -> Tensor:
    """The same map with the Frobenius norm of a rotation, from which learning rates are counted."""
    return (matrix_DD * (len(matrix_DD) ** 0.5 / torch.linalg.norm(matrix_DD))).float()
