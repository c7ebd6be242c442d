"""Everything that decides what a training run computes, in one typed record."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

VectorType = Literal["float32", "float16", "int8", "binary"]
"""Number types that vectors are stored as."""
Projection = Literal["linear", "rotation", "residual_mlp", "selection"]

Favour = Literal["all", "both", "recurring", "new"]
Unsupervised = Literal["listwise", "cosines"]

STAGE_STEPS = 500


def _parse_dims(value: Any) -> Any:
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str):
        return tuple(part for part in value.replace(" ", "").split(",") if part)
    return value


def _check_dims(dims: tuple[int, ...]) -> tuple[int, ...]:
    if any(d < 1 for d in dims):
        raise ValueError("every dim must be at least 1")
    if len(set(dims)) < len(dims):
        raise ValueError("a dim is named twice")
    return tuple(sorted(dims, reverse=True))


Dims = Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_parse_dims), AfterValidator(_check_dims)]
"""Numbers of dims, the largest first; also read from one number or from "384,96"."""


def matching(pattern: str, told: str) -> AfterValidator:
    """Holds a text to a pattern; what it must be is told in words, as "a version, as v0003"."""

    def check(value: str | None) -> str | None:
        if value is not None and not re.fullmatch(pattern, value):
            raise ValueError(f"must be {told}")
        return value

    return AfterValidator(check)


VERSION_NAME = matching(r"v[0-9]{4,}", "the name of a published version, as v0003")

COMPATIBLE = 1.0
"""Weight that `smec train --compatible` sets."""
COMPATIBLE_HELP = "In a warm start: new queries still find what the champion has compressed; sets compatible=1."


MEMORY_BUDGET = 8.0
"""GiB of a machine's memory for the vectors that a training holds, by default."""


class Settings(BaseModel):
    """Settings of a command: no others than its fields, whose docstrings are the help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


class TrainConfig(Settings):
    """Settings of the method. Same config, seed, data and number of workers: the same model, bit for bit (CPU)."""

    model_config = ConfigDict(allow_inf_nan=False)

    dims: Dims = Field(json_schema_extra={"metavar": "D,D,..."})
    """Target dims, each a usable prefix of the one nested vector; the input dim is always added in front."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice: order, negatives, Gumbel noise, initialisation, baselines."""

    schedule: Literal["sequential", "parallel"] = "sequential"
    """sequential: a stage for each dim, each on the block that the one before it kept (SMRL). parallel: one stage, as
    long as a full stage for each dim, with the losses of all dims at once (MRL); it has no selection of dims."""
    lookahead: float | None = Field(None, ge=0)
    """Weight of the losses of all smaller dims in a stage against that of its own, so that what it keeps has good
    smaller blocks; 0 in the paper. Default: 1, or 0 where there are no judgements. schedule=parallel and
    projection=selection do not look ahead."""
    projection: Literal["auto", "linear", "rotation", "residual_mlp", "selection"] = "auto"
    """What a stage learns beside its selection: a linear map, a rotation, x + MLP(x), nothing (selection: ADS alone
    chooses among the dims as they are), or auto: with judgements a linear map for a stage that keeps all dims and for
    schedule=parallel, and a rotation for any other; without judgements rotations."""
    init: Literal["closed", "pca", "identity", "random"] = "closed"
    """Where a projection starts. closed: the map of all dims as the linear map from second moments that does best on
    folds of the judgements (see `favour`); later ones as the uncentred PCA rotation of the kept block, of documents or
    of these and train queries. Both take another order of dims where dev gains by more than twice the error of the
    difference. Without judgements it is pca. pca: the map of all dims in a chain as identity, later
    ones as the PCA rotation of the documents' block. Or all as identity, or as a random rotation. Dims that the stage
    before has looked ahead to are mixed with none above them."""
    favour: Favour = "both"
    """Which dev queries choose what is kept. all: every query counts the same. recurring: those that share a relevant
    document with a train query. new: those that share none. both: the two parts count the same, whatever their sizes.
    Where a part that counts has fewer than 30 queries or, with both, where one is less than a tenth of all, every query
    counts the same."""
    hidden_dim: int = Field(512, ge=1)
    """Width of the MLP of projection=residual_mlp, and of the Matryoshka-Adaptor that experiments compare SMEC
    with."""

    tau: float = Field(1.0, gt=0)
    """Gumbel-Softmax temperature of ADS; sharpens the gradient, never changes which dims the forward pass keeps."""
    gumbel_noise: float = Field(0.3, ge=0)
    """Scale of the Gumbel noise on the ADS logits while training (1 in the paper)."""

    temperature: float = Field(0.07, gt=0)
    """Temperature T of the ranking loss (1 in the paper)."""
    unsupervised: Unsupervised | None = None
    """The unsupervised loss of S-XBM. listwise: KL of softmaxes over a document's neighbours in the memory and the
    step's documents, the teacher being what the stage of all dims gives; for documents that no train query has.
    cosines: the paper's, the difference of single cosines from the frozen ones. Default: listwise. Where there are no
    judgements, and 100 queries or more that are in no split, what the full vectors find for these is learnt as if it
    were judged; with fewer, or where this is set so, the loss is cosines."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the unsupervised loss against the ranking loss (0.1 in the paper); 0 leaves S-XBM out. More, such as
    0.3, can help queries for new documents and costs queries for recurring ones. Default: 0, or 0.1 where there are no
    judgements."""
    alpha_whole: float | None = Field(None, ge=0)
    """The same in a stage that takes all dims and may change their cosines, which is the only one of schedule=parallel.
    Default: 0, or alpha where there are no judgements."""
    list_temperature: float = Field(0.05, gt=0)
    """Temperature of the softmaxes of unsupervised=listwise."""
    top_k: int | None = Field(None, ge=1)
    """Nearest memory items per anchor in the unsupervised loss; default: 10, or 100 where there are no judgements."""
    queue_size: int = Field(5000, ge=1)
    """Slots of the S-XBM memory."""
    memory: Literal["global", "local"] = "global"
    """How workers search the memory, of which each holds a part. global: all parts for every anchor, which is exactly
    one memory, whatever the number of workers. local: each its own part for its own anchors; cheaper, but neighbours
    are then the nearest of a part, and the result depends on the number of workers."""

    exclude_self: bool = False
    """A query is itself a document, the one with its id, which is neither a result nor a negative of its own: for
    duplicate questions, or images searched by images. Without judgements it matters only where the full vectors
    teach (`unsupervised`), which then never find a query's own document for it."""
    batch_size: int = Field(128, ge=1)
    """Queries in a global step, over all workers."""
    positives: int = Field(2, ge=1)
    """Relevant documents drawn per query and step."""
    hard_negatives: int = Field(2, ge=0)
    """Documents judged with score 0 drawn per query and step."""
    negatives: int = Field(128, ge=0)
    """Documents drawn at random per step, shared by all queries."""
    sample_rows: int | None = Field(None, ge=100)
    """Most documents that negatives, the memory and dev are drawn from, and that a training without judgements learns
    from: a sample by hashes of ids. Judged documents come on top, and the first second moments are those of the whole
    corpus. Default: as many as memory_budget has room for, a million at most."""
    epochs: int | None = Field(None, ge=0)
    """Most epochs of a stage; default: as many as make 500 steps, and at least 2. In a chain that starts from a closed
    form the map of all dims may take four times as many where dev stops it, the first rotation a fifth, and later ones
    two fifths, at least 2; the patience of rotations shrinks alike. Not in a warm start. 0: a stage stays as it
    starts."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate of the projection (one-cycle schedule, AdamW without weight decay); default: .002, or .001
    where there are no judgements."""
    ads_lr_factor: float = Field(30.0, ge=0)
    """The ADS logits learn at lr times this. With 0, and gumbel_noise=0, there is no ADS: a stage keeps its first
    dims."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Decay per step of the moving average of a stage's weights, which is what is scored and kept; 0: the last step."""

    compatible: float = Field(0.0, ge=0, json_schema_extra={"on": COMPATIBLE, "help": COMPATIBLE_HELP})
    """In a warm start: weight, against the ranking loss, of the same loss between new queries and the documents as the
    champion has them, so that the old compressed documents stay searchable with new queries (backward-compatible
    training, Shen et al., CVPR 2020, arXiv 2003.11942). 0: they need not."""

    guard: bool = True
    """Keep the best state on dev, protect earlier prefixes, stop without gain, and with init=closed keep the closed
    form or PCA where all stages together are no better; off: fixed epochs, last state."""
    patience: int | None = Field(None, ge=1)
    """Epochs without gain on dev after which a stage stops; default: a third of `epochs`, or of all that
    schedule=parallel may take, and at least 2."""
    score_steps: int = Field(40, ge=1)
    """Steps between two scorings on dev, at least, where epochs are shorter; but dev is scored twice within `patience`,
    and at the end of every epoch where that is 1. It is always scored at the end of an epoch."""
    guard_tolerance: float = Field(0.005, ge=0)
    """The most nDCG@10 that a stage may cost any earlier configured prefix on dev, and its own where it looks ahead;
    with init=closed also the most (or a standard error, if that is more) by which its own dim may fall below PCA or the
    closed form on a part of dev, unless it starts there."""
    dev_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the train queries held out as dev, by a hash of the query id, where the data has no qrels/dev."""
    dev_queries: int = Field(1500, ge=2)
    """Most queries that are dev, those whose ids have the lowest hashes. Where dev is a share of the train queries, the
    others are trained on; others of the data's own dev split are not used."""
    dev_corpus: int = Field(100_000, ge=100)
    """Most documents that dev is scored against: all judged ones, then a seeded sample."""
    refit: bool = True
    """Replay the whole chain on train + dev with each stage's number of epochs as found on dev. Without
    judgements there is none: held-out documents have nothing to teach that the others have not."""

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        least = self.neighbours(labelled=True)
        if self.queue_size < least:
            raise ValueError(f"queue_size ({self.queue_size}) must be at least top_k ({least})")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.schedule == "parallel" and self.projection == "selection":
            raise ValueError("schedule=parallel selects no dims, so projection=selection leaves it nothing to learn")
        return self

    def stage_epochs(self, epoch_steps: int) -> int:
        """Most epochs of a stage where an epoch takes `epoch_steps` steps."""
        return self.epochs if self.epochs is not None else max(2, math.ceil(STAGE_STEPS / epoch_steps))

    def scoring_epochs(self, patience: int, epoch_steps: int) -> int:
        """Epochs from one scoring on dev to the next in a stage of such patience, of epochs of `epoch_steps` steps."""
        return min(math.ceil(self.score_steps / epoch_steps), max(1, patience // 2))

    def dev_docs(self, corpus_rows: int) -> int:
        """Documents that dev is scored against, which is a copy of so many."""
        return min(corpus_rows, self.dev_corpus) if self.guard else 0

    def copied_docs(self, corpus_rows: int) -> int:
        """Documents of which a training holds a copy beside the rows: those of dev, and of a listwise teacher all."""
        is_sequential = self.schedule == "sequential"
        weights = [self.unsupervised_weight(True, is_whole) for is_whole in (True, False)[: 1 + is_sequential]]
        has_teacher = self.unsupervised_loss(labelled=True) == "listwise" and self.epochs != 0 and any(weights)
        return self.dev_docs(corpus_rows) + (corpus_rows if has_teacher else 0)

    def stage_patience(self, epochs: int) -> int:
        """Epochs without gain after which a stage of at most `epochs` epochs stops."""
        return self.patience if self.patience is not None else max(2, math.ceil(epochs / 3))

    def resolved(self, labelled: bool) -> Self:
        """A copy in which the defaults that depend on judgements are filled in."""
        return self.model_copy(
            update={
                "lr": self.peak_lr(labelled),
                "unsupervised": self.unsupervised_loss(labelled),
                "alpha": self.unsupervised_weight(labelled),
                "alpha_whole": self.unsupervised_weight(labelled, is_whole=True),
                "lookahead": self.lookahead_weight(labelled),
                "top_k": self.neighbours(labelled),
            }
        )

    def unsupervised_loss(self, labelled: bool) -> Unsupervised:
        """The kind of unsupervised loss, with judgements or without."""
        return self.unsupervised if self.unsupervised is not None else "listwise" if labelled else "cosines"

    def peak_lr(self, labelled: bool) -> float:
        """Peak learning rate of the projection, with judgements or without."""
        return self.lr if self.lr is not None else 2e-3 if labelled else 1e-3

    def unsupervised_weight(self, labelled: bool, is_whole: bool = False) -> float:
        """Alpha of a stage, which may be that of all dims."""
        # where judgements teach, it costs recurring documents more than it gives new ones
        if is_whole and self.alpha_whole is not None:
            return self.alpha_whole
        if is_whole and labelled:
            return 0.0
        if self.alpha is not None:
            return self.alpha
        return 0.0 if labelled else 0.1

    def lookahead_weight(self, labelled: bool) -> float:
        """Weight of the losses of a stage's smaller dims, with judgements or without."""
        return self.lookahead if self.lookahead is not None else 1.0 if labelled else 0.0

    def neighbours(self, labelled: bool) -> int:
        """K of the unsupervised loss. Alone, it needs neighbours far enough out to keep the others apart."""
        return self.top_k if self.top_k is not None else 10 if labelled else 100


SAMPLE_ROWS = "sample_rows"
SET_BY_DATA = tuple(
    name for name, field in TrainConfig.model_fields.items() if field.default is None and name != SAMPLE_ROWS
)
"""Settings whose default depends on the data, beside sample_rows, whose default goes by memory_budget, too."""

PAPER_PRESET: dict[str, Any] = {
    "temperature": 1.0,
    "unsupervised": "cosines",
    "alpha": 0.1,
    "alpha_whole": 0.1,
    "lookahead": 0.0,
    "init": "identity",
    "gumbel_noise": 1.0,
    "ema_decay": 0.0,
    "projection": "linear",
    "guard": False,
    "refit": False,
}
"""The method as published: T = 1, identity start, full noise, linear maps, no guard, fixed epochs."""

FAST_PRESET: dict[str, Any] = {"schedule": "parallel", "init": "closed", "epochs": 0}
"""The best closed form, without a gradient."""

PRESETS = {"paper": PAPER_PRESET, "fast": FAST_PRESET}
