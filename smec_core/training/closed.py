"""The closed form that a training starts from: chosen by cross-fitting over folds of the judgements.

Shapes: Q queries, D dims, d prefixes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smec_core.config import Favour, TrainConfig
from smec_core.data.folds import document_folds
from smec_core.data.judgements import Judgements
from smec_core.data.seen import LEAST_PART, LEAST_QUERIES
from smec_core.evaluation.dev_set import DevSet, make_dev_set
from smec_core.model.adapter import FrozenStage
from smec_core.model.closed_forms import ClosedForm
from smec_core.model.pca import block_rotation
from smec_core.training.context import PassContext, TrainingData
from smec_core.training.moments import MomentSums
from smec_core.training.ordering import put_in_order

PLAIN = ClosedForm("pca")
FORMS = (
    PLAIN,
    *(ClosedForm("white", "pooled", power) for power in (0.15, 0.3)),
    *(ClosedForm("within", "docs", power, part) for power, part in ((1.0, 0.3), (1.0, 0.5), (0.5, 0.3))),
    *(ClosedForm("within", "pooled", power, part) for power, part in ((1.0, 0.1), (1.0, 0.3), (1.0, 0.5), (0.5, 0.3))),
)
"""What is tried; of several that are as good the first is taken."""
FOLDS = 3
FOLD_DOCS, FOLD_QUERIES = 20_000, 500
"""Most documents that a fold is scored against, beside judged ones, and most queries, twice as many for both parts."""


class ClosedStart:
    """The closed form that the passes of a training start from: chosen once, and made of what each learns from.

    Attributes:
        chosen: the form by the names of its fields, and as `recurring` and `new` the mean nDCG@10 that it has reached
            on the folds; `start` is `identity` where the stage of all dims is better from the vectors as they are;
            `orders` are the forms that put what each prefix holds in order; `kept` is `closed` or `pca` where no
            training was better. Empty before the choice. What a checkpoint has kept may be put here.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        dims: Sequence[int],
        say: Callable[[str], None],
        forms: Sequence[ClosedForm] = FORMS,
    ) -> None:
        """Takes what is needed, and computes nothing.

        Args:
            data: what to learn from; a choice needs judgements.
            config: settings of the method.
            dims: prefixes to score.
            say: takes a line that tells the choice.
            forms: what to choose from.
        """
        self._data, self._config, self._dims, self._say, self._forms = data, config, dims, say, forms
        self._sums = MomentSums(data.docs, data.queries, data.node.group, data.docs_DD)
        self.chosen: dict[str, Any] = {}

    @property
    def docs_DD(self) -> Tensor:
        """Second moment of all documents. Collective the first time."""
        return self._sums.docs_DD

    def make(self, context: PassContext) -> tuple[Tensor, bool]:
        """What the stage of all dims starts from, made of what the pass learns from. Collective.

        The form is chosen the first time, by all judgements, and the order of its dims the first time that there is a
        dev set.

        Args:
            context: what the stages share.

        Returns:
            The matrix (D, D), and whether its outputs are ordered by documents and queries alike.
        """
        data = self._data
        assert data.train is not None
        if not self.chosen:
            self._choose(data.train if data.dev is None else data.train.merge(data.dev))
        if self.chosen.get("kept") == "pca":
            return context.group.from_first_(block_rotation(self.docs_DD)), False
        form = ClosedForm(**{name: self.chosen[name] for name in ClosedForm._fields})
        moments = self._sums.of(context.judgements)
        matrix_DD = context.group.from_first_(scaled(form.matrix(moments)))
        orders = [ClosedForm(**order) for order in self.chosen.get("orders", [])]
        matrix_DD, orders = put_in_order(context, matrix_DD, self._dims, orders)
        self.chosen["orders"] = [order._asdict() for order in orders]
        return context.group.from_first_(matrix_DD), form.moment == "pooled"

    @property
    def starts_plain(self) -> bool:
        """Whether the stage of all dims starts from the vectors as they are, which has proved better."""
        return self.chosen.get("start") == "identity" and "kept" not in self.chosen

    def _choose(self, judgements: Judgements) -> None:
        config = self._config
        self._say(f"choosing a closed form to start from, on {FOLDS} folds of the judgements")
        tried = try_forms(self._sums, self._data, judgements, config, self._dims, self._forms)
        form = best_form(tried, config.favour, config.epochs != 0, config.guard_tolerance)
        parts = {name: values_Qd for name, values_Qd in tried[form]._asdict().items() if len(values_Qd)}
        self.chosen = form._asdict() | {name: float(values_Qd.mean()) for name, values_Qd in parts.items()}
        told = [
            f"{values_Qd.mean():.4f} on {len(values_Qd)} scores of {name} queries" for name, values_Qd in parts.items()
        ]
        # a query may be in two folds
        self._say(f"start: {form}; mean nDCG@10 over the dims, all folds together: {' and '.join(told)}")


class Tried(NamedTuple):
    """Scores (Q, prefixes) of a closed form, of the queries that the folds have held out.

    Attributes:
        recurring: of those with a relevant document that the fold has learnt from.
        new: of those without.
    """

    recurring: np.ndarray
    new: np.ndarray


def try_forms(
    sums: MomentSums,
    data: TrainingData,
    judgements: Judgements,
    config: TrainConfig,
    dims: Sequence[int],
    forms: Sequence[ClosedForm] = FORMS,
) -> dict[ClosedForm, Tried]:
    """Scores closed forms by cross-fitting. Collective.

    Args:
        sums: of the data.
        data: the rows.
        judgements: all that may be learnt from or chosen by.
        config: settings of the method.
        dims: prefixes to score.
        forms: what to try.
    """
    docs, queries, node = data.docs, data.queries, data.node
    nothing = np.empty(0, np.int64)
    small = config.model_copy(update={"dev_corpus": min(config.dev_corpus, FOLD_DOCS)})
    folds = []
    for fold in document_folds(judgements, FOLDS, config.seed):
        share = 2 * FOLD_QUERIES / max(len(fold.recurring) + len(fold.new), 1)
        folds.append((fold, _some(fold.recurring, share, config.seed), _some(fold.new, share, config.seed)))
    scored = judgements.select(np.zeros(len(judgements), bool))
    for _, recurring, new in folds:
        scored = scored.merge(recurring).merge(new)
    whole = make_dev_set(queries, docs, scored, nothing, small, node)
    found: dict[ClosedForm, tuple[list[np.ndarray], list[np.ndarray]]] = {form: ([], []) for form in forms}
    for fold, recurring, new in folds:
        # a choice: half the digits do, in half the time
        moments = sums.of(fold.fit).to(torch.float32)
        if len(fold.left_out):
            parts = [
                (recurring, nothing, np.zeros(len(recurring), bool)),
                (new, fold.left_out, np.ones(len(new), bool)),
            ]
        else:
            # both search the same documents
            both = recurring.merge(new)
            parts = [(both, nothing, np.isin(both.query_row_Q, new.query_row_Q))]
        sets: list[tuple[DevSet, np.ndarray]] = []
        for part, left_out, is_new_Q in parts:
            if len(part):
                sets.append((whole.of(queries, part, left_out), is_new_Q))
        for form in forms:
            stage = FrozenStage(docs.dim, "linear", {"weight": form.matrix(moments).float().to(node.device)})
            for dev, is_new_Q in sets:
                scores = dev.score(stage.apply, docs.dim, dims)
                value_Qd = torch.stack([scores[dim] for dim in dims], 1).cpu().numpy()
                for values, keep_Q in zip(found[form], (~is_new_Q, is_new_Q), strict=True):
                    values.append(value_Qd[keep_Q])
    none = np.empty((0, len(dims)))
    return {form: Tried(*(np.concatenate([*part, none]) for part in values)) for form, values in found.items()}


def _some(judgements: Judgements, share: float, seed: int) -> Judgements:
    """A share of the queries; 1 or more: all."""
    lot_Q = np.random.default_rng((seed, 5)).permutation(len(judgements))
    return judgements.select(lot_Q < share * len(judgements))


def best_form(tried: Mapping[ClosedForm, Tried], favour: Favour, is_trained: bool, tolerance: float) -> ClosedForm:
    """The form to start from, or to keep.

    Parts of fewer than LEAST_QUERIES decide nothing; nor, where both have more, does one that is less than LEAST_PART
    of the two. A form that loses more than the tolerance, and a standard error, to PCA at a prefix on either part is
    not taken.

    Training adds what recurs, so a start that generalises is worth more: among those that are as good as the best for
    new documents, within a standard error of the difference, it is the one that is best for recurring ones.

    Args:
        tried: what each form has reached.
        favour: `recurring` and `new` look at these alone, the others at both parts alike.
        is_trained: whether training goes on from it; else it counts by the mean of both parts.
        tolerance: nDCG@10.

    Returns:
        The form; where no part is large enough plain PCA, or the first if that is not among them.
    """
    sizes = [len(part) for part in next(iter(tried.values()))]
    enough = [size >= LEAST_QUERIES for size in sizes]
    wanted = [favour != "new", favour != "recurring"]
    counts = [has and is_wanted for has, is_wanted in zip(enough, wanted, strict=True)]
    counts = counts if any(counts) else enough
    if all(counts):
        counts = [size >= LEAST_PART * sum(sizes) for size in sizes]
    if not any(counts):
        return PLAIN if PLAIN in tried else next(iter(tried))
    plain = tried.get(PLAIN)
    judged = [part for part, has in enumerate(enough) if has]
    forms = [
        form
        for form in tried
        if plain is None or not any(_loses(plain[part] - tried[form][part], tolerance) for part in judged)
    ]
    if is_trained and all(counts):
        best = max(forms, key=lambda form: tried[form].new.mean())
        forms = [form for form in forms if _is_level((tried[best].new - tried[form].new).mean(1))]
        counts = [True, False]

    def mean(form: ClosedForm) -> float:
        return sum(float(part_Qd.mean()) for part_Qd, does in zip(tried[form], counts, strict=True) if does)

    return max(forms, key=mean)


def _loses(loss_Qd: np.ndarray, tolerance: float) -> bool:
    mean_d = loss_Qd.mean(0)
    return bool(((mean_d > tolerance) & (mean_d > _error(loss_Qd))).any())


def _is_level(gain_Q: np.ndarray) -> bool:
    return bool(gain_Q.mean() <= _error(gain_Q))


def _error(values_Q: np.ndarray) -> np.ndarray:
    """Standard error of the mean over queries."""
    error: np.ndarray = values_Q.std(0, ddof=1) / len(values_Q) ** 0.5
    return error


def scaled(matrix_DD: Tensor) -> Tensor:
    """The same map with the Frobenius norm of a rotation, which learning rates are made for."""
    return (matrix_DD * (len(matrix_DD) ** 0.5 / torch.linalg.norm(matrix_DD))).float()
