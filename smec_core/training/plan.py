"""The training plan: what each stage of each pass does, decided before the training starts.

`plan_training` gives a list of `StagePlan`, which the trainer executes and `smec train --dry-run` prints. One builder
makes the plan of each kind of training: sequential, parallel, extending a base model, warm. What depends on dev (the
epochs to keep, the order that it starts in, the scores to hold) is filled in by `StagePlan.replay` and
`StagePlan.floors_of`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from smec_core.config import Projection, TrainConfig
from smec_core.errors import InputError
from smec_core.evaluation.dev_set import Scores
from smec_core.model.adapter import PRESERVING, FrozenStage
from smec_core.model.closed_forms import ClosedForm
from smec_core.training.context import PassName
from smec_core.training.schedule import Rhythm, TrainingShape, chain_dims, prefix_dims
from smec_core.training.warm import WarmStart, warm_epochs

Start = Literal["closed", "ordered", "pca", "identity", "random"]
CLOSED_TIMES = 4
"""Full stages that a map of all dims may take from a closed form, where dev stops it."""
Prefixes = tuple[tuple[int, float], ...]
"""Dims of each prefix, and the weight of its loss; none twice."""


@dataclass(frozen=True)
class LossTerm:
    """A part of a stage's loss: at each prefix L_rank and, with alpha, L_unsup (paper equations 9 and 10).

    Attributes:
        prefixes: where it is computed.
        is_gated: on the dims that ADS keeps, through its gates; otherwise on all outputs.
        compatible: weight, against that of L_rank, of the same loss between queries and the documents as the champion
            has them; 0: none.
    """

    prefixes: Prefixes
    is_gated: bool
    compatible: float


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage of a pass does.

    Attributes:
        pass_name: the pass.
        number: place in the chain, from 0.
        d_in: dims that it takes.
        dim: dims that it keeps.
        projection: what it learns.
        rhythm: how long it takes.
        gated: prefixes of the loss on the dims that ADS keeps.
        whole: prefixes of the loss on all outputs.
        alpha: weight of the unsupervised loss.
        compatible: see `LossTerm`.
        noise: scale of the Gumbel noise.
        ahead: smaller dims that it trains too, descending.
        prepared: this dim and smaller ones, ascending, where the stage before has trained them: the PCA that it starts
            from mixes none of them with what is above it.
        start: where its weights start; `ordered` at the rotation that is best on dev, or that `order` names.
        is_ordered: whether outputs start in order of importance; the ADS logits then start descending.
        champion: the stage of the model in service that it starts from instead, whose dims stay in their places.
        counted: prefixes whose dev scores decide which state is best.
        held: the most dev score that a prefix may lose against the stage's start.
        protected: configured prefixes whose dev scores at the stage's end later stages must keep.
        tolerance: the most that later stages may cost them.
        floors: least dev score of each prefix that earlier stages have protected.
    """

    pass_name: PassName = "first"
    number: int = 0
    d_in: int
    dim: int
    projection: Projection
    rhythm: Rhythm
    gated: Prefixes = ()
    whole: Prefixes
    alpha: float
    compatible: float = 0.0
    noise: float
    ahead: tuple[int, ...] = ()
    prepared: tuple[int, ...] = ()
    start: Start
    order: ClosedForm | None = None
    is_ordered: bool
    champion: FrozenStage | None = None
    counted: tuple[int, ...]
    held: Scores = field(default_factory=dict)
    protected: tuple[int, ...]
    tolerance: float
    floors: Scores = field(default_factory=dict)

    @property
    def scored(self) -> tuple[int, ...]:
        """All prefixes that are scored on dev, ascending."""
        return tuple(sorted({*self.counted, *self.floors}))

    @property
    def is_closed(self) -> bool:
        """Whether it starts from a closed form, which is chosen by the judgements."""
        return self.start == "closed" and self.champion is None

    @property
    def keeps_places(self) -> bool:
        """Whether outputs stay where they are trained, because later stages count on their places."""
        return bool(self.ahead) or self.champion is not None

    @property
    def losses(self) -> tuple[LossTerm, ...]:
        """Its loss terms; a projection that preserves cosines has nothing to learn at the whole block."""
        whole = self.whole
        if self.projection in PRESERVING and not self.compatible and self.dim < self.d_in:
            whole = tuple(prefix for prefix in whole if prefix[0] < self.d_in)
        terms = ((self.gated, True), (whole, False))
        return tuple(LossTerm(prefixes, gated, self.compatible) for prefixes, gated in terms if prefixes)

    def replay(self, projection: Projection, epochs: int, order: ClosedForm | None = None) -> "StagePlan":
        """The plan of the refit pass, with what the first pass kept; its kind may be that of an earlier version."""
        return replace(self, projection=projection, rhythm=self.rhythm.stopping_at(epochs), order=order)

    def unordered(self) -> "StagePlan":
        """The same, whose outputs start in the order that they have already."""
        return self if self.start == "closed" else replace(self, start="identity")

    def floors_of(self, scores: Mapping[int, float]) -> Scores:
        """Least scores for later stages, given the dev scores at this stage's end."""
        return {prefix: score - self.tolerance for prefix, score in scores.items() if prefix in self.protected}


def plan_training(
    shape: TrainingShape, config: TrainConfig, base: Sequence[FrozenStage] = (), warm: WarmStart | None = None
) -> list[StagePlan]:
    """Plans all passes of a training (paper section 3.1, with the guard and the refit).

    A warm start is one pass on train + dev without a guard: the champion has learnt from what is dev now, so that dev
    would always like the start best.

    Args:
        shape: the data.
        config: settings of the method.
        base: stages that are trained already; those that follow are rotations of the smallest block they keep.
        warm: the champion that each stage starts from.

    Returns:
        The stages of the first (or warm) pass, then those of the refit pass, in which `replay` has to fill in what dev
        decides.

    Raises:
        InputError: the settings do not fit the data, the base or the champion.
    """
    if config.compatible and not (warm and shape.labelled):
        needs = "judgements to learn from" if warm else "a model to be compatible with; name it with warm_start"
        raise InputError(f"compatible: needs {needs}, or leave it 0")
    if warm is not None:
        return _warm(shape, config, base, warm)
    if base:
        stages = _extending(shape, config, base)
    else:
        stages = _parallel(shape, config) if config.schedule == "parallel" else _sequential(shape, config)
    if not (config.guard and config.refit and shape.labelled):
        return stages
    refit = [replace(stage, rhythm=replace(stage.rhythm, epoch_steps=shape.refit_steps)) for stage in stages]
    return stages + [replace(stage, pass_name="refit") for stage in refit]


def _sequential(shape: TrainingShape, config: TrainConfig) -> list[StagePlan]:
    """A stage for each dim, each on the block that the one before keeps (SMRL)."""
    _check_judgements(shape, config)
    prefixes = prefix_dims(shape.input_dim, config.dims)
    return _chain(shape, config, [shape.input_dim, *chain_dims(shape.input_dim, config.dims)], prefixes)


def _extending(shape: TrainingShape, config: TrainConfig, base: Sequence[FrozenStage]) -> list[StagePlan]:
    """Rotations of the smallest block of a base model, which keep the dims that it has."""
    if config.schedule == "parallel":
        raise InputError("schedule: dims are added to a base model by stages; leave it sequential")
    smallest, has = base[-1].dim, [stage.dim for stage in base]
    lost = [dim for dim in config.dims if dim >= smallest and dim not in {shape.input_dim, *has}]
    if lost:
        raise InputError(
            f"dims: the base model has no prefix of {lost[0]} dims, and only dims below its smallest, {smallest}, "
            "can be added"
        )
    added = [dim for dim in config.dims if dim < smallest]
    if not added:
        raise InputError(f"dims: none is below {smallest}, the smallest block of the base model; add a smaller one")
    if config.projection not in ("auto", "rotation"):
        raise InputError(
            f"projection: {config.projection} would change the base model's dims; only rotations are added to it"
        )
    rotations = config.model_copy(update={"projection": "rotation"})
    return _chain(shape, rotations, chain_dims(smallest, added), prefix_dims(shape.input_dim, [*config.dims, *has]))


def _chain(
    shape: TrainingShape, config: TrainConfig, widths: Sequence[int], prefixes: tuple[int, ...]
) -> list[StagePlan]:
    blocks = list(pairwise(widths))
    if config.projection in PRESERVING or not shape.changes_cosines:
        # from D to D these change no cosine, and without judgements the original cosines are the target
        blocks = [(d_in, dim) for d_in, dim in blocks if d_in != dim]
    # selected as they are, dims have no order to look ahead in
    share = 0.0 if config.projection == "selection" else config.lookahead_weight(shape.labelled)
    keeps_all = any(d_in == dim for d_in, dim in blocks)
    has_closed = config.init == "closed" and shape.changes_cosines and keeps_all
    stages: list[StagePlan] = []
    for number, (d_in, dim) in enumerate(blocks):
        ahead = tuple(later for _, later in blocks[number + 1 :]) if share and d_in > dim else ()
        stages.append(
            StagePlan(
                number=number,
                d_in=d_in,
                dim=dim,
                projection=_projection(config, changes_cosines=d_in == dim),
                rhythm=_rhythm(shape, config, d_in, dim) if has_closed else Rhythm.of(shape, config),
                gated=((dim, 1.0), *((width, share) for width in ahead)) if d_in > dim else (),
                whole=((d_in, 1.0),),
                alpha=config.unsupervised_weight(shape.labelled, is_whole=d_in == dim),
                noise=config.gumbel_noise,
                ahead=ahead,
                prepared=stages[-1].ahead[::-1] if stages else (),
                start=_start(config, d_in == dim, has_closed, shape.is_self_taught),
                is_ordered=bool(stages and stages[-1].ahead) or config.init in ("closed", "pca"),
                counted=(*ahead, dim, d_in),
                held={dim: config.guard_tolerance} if ahead else {},
                protected=tuple(prefix for prefix in prefixes if prefix >= dim),
                tolerance=config.guard_tolerance,
            )
        )
    return stages


def _rhythm(shape: TrainingShape, config: TrainConfig, d_in: int, dim: int) -> Rhythm:
    """How long a stage takes in a chain that starts from a closed form."""
    if d_in == dim:
        # few judgements are soon learnt, as dev tells; many are worth many steps
        return Rhythm.of(shape, config, times=CLOSED_TIMES if config.guard else 1, waits=1)
    # there is less to learn; the steps of the first rotation cost most
    return Rhythm.of(shape, config, times=0.2 if d_in == shape.input_dim else 0.4)


def _start(config: TrainConfig, is_whole: bool, has_closed: bool, is_self_taught: bool) -> Start:
    """Where a stage of the chain starts.

    Args:
        config: settings of the method.
        is_whole: whether it keeps all dims.
        has_closed: whether the first stage starts from a closed form.
        is_self_taught: whether the judgements are what the full vectors find.
    """
    if has_closed and not is_whole:
        # what is not trained is in order already
        return "identity" if config.epochs == 0 else "ordered"
    if config.init == "closed":
        return "closed" if is_whole else "ordered" if is_self_taught else "pca"
    return "identity" if config.init == "pca" and is_whole else config.init


def _parallel(shape: TrainingShape, config: TrainConfig) -> list[StagePlan]:
    """One stage, as long as a full stage for each dim, with the losses of all dims at once (MRL)."""
    _check_judgements(shape, config)
    dims = chain_dims(shape.input_dim, config.dims)
    prefixes = prefix_dims(shape.input_dim, config.dims)
    if dims[-1] == shape.input_dim and (config.projection in PRESERVING or not shape.changes_cosines):
        return []
    is_closed = config.init == "closed" and shape.changes_cosines and config.projection not in PRESERVING
    stage = StagePlan(
        d_in=shape.input_dim,
        dim=dims[-1],
        projection=_projection(config, changes_cosines=shape.changes_cosines),
        rhythm=Rhythm.of(shape, config, times=len(dims)),
        whole=tuple((dim, 1.0) for dim in prefixes),
        alpha=config.unsupervised_weight(shape.labelled, is_whole=True),
        noise=0.0,
        start="pca" if config.init == "closed" and not is_closed else config.init,
        is_ordered=True,
        counted=prefixes,
        protected=prefixes,
        tolerance=config.guard_tolerance,
    )
    return [stage]


def _warm(shape: TrainingShape, config: TrainConfig, base: Sequence[FrozenStage], warm: WarmStart) -> list[StagePlan]:
    """One pass, in which each stage starts at that of the champion and takes the epochs that it kept."""
    if base:
        raise InputError("warm_start: starts all stages anew, which a base model's must not be; give one of the two")
    if warm.input_dim != shape.input_dim:
        raise InputError(
            f"warm_start: the model takes {warm.input_dim} dims, the data has {shape.input_dim}; name a model that "
            "was trained on such vectors"
        )
    if warm.dims != prefix_dims(shape.input_dim, config.dims):
        raise InputError(
            f"dims: a warm start keeps the dims of its model, {', '.join(map(str, warm.dims))}; give these, or "
            "train without warm_start"
        )
    if config.epochs == 0:
        raise InputError("epochs: with 0 a warm start leaves the model as it is; give it some, or leave the default")
    shape = shape.without_dev()
    stages = _parallel(shape, config) if config.schedule == "parallel" else _sequential(shape, config)
    theirs, ours = ([(stage.d_in, stage.dim) for stage in chain] for chain in (warm.stages, stages))
    if theirs != ours:
        told = (" ".join(f"{d_in}->{dim}" for d_in, dim in chain) for chain in (theirs, ours))
        raise InputError(
            f"warm_start: the model has the stages {next(told)}, these settings "
            f"{'with' if shape.labelled else 'without'} judgements make {next(told)}; take schedule and projection "
            "from its config.json, or train without warm_start"
        )
    kinds = {stage.projection for stage in warm.stages}
    if config.projection != "auto" and kinds != {config.projection}:
        raise InputError(
            f"projection: a warm start keeps the kinds of its model, {', '.join(sorted(kinds))}; leave projection at "
            "auto, or train without warm_start"
        )
    if config.schedule == "sequential":
        # what is new has to be learnt at every dim, whatever the champion started from
        stages = [replace(stage, rhythm=Rhythm.of(shape, config)) for stage in stages]
    taken = [warm_epochs(kept, stage.rhythm.epochs) for kept, stage in zip(warm.epochs, stages, strict=True)]
    return [
        replace(
            stage,
            pass_name="warm",
            projection=champion.projection,
            rhythm=replace(stage.rhythm, epochs=epochs).stopping_at(epochs),
            champion=champion,
            compatible=config.compatible,
        )
        for stage, champion, epochs in zip(stages, warm.stages, taken, strict=True)
    ]


def _check_judgements(shape: TrainingShape, config: TrainConfig) -> None:
    if not shape.labelled and not config.unsupervised_weight(False, is_whole=config.schedule == "parallel"):
        raise InputError(
            "alpha: without judgements the unsupervised loss is all there is to learn from; give it a weight"
        )


def _projection(config: TrainConfig, changes_cosines: bool) -> Projection:
    """The kind of a stage; auto is a linear map where cosines at all dims are to change, and else a rotation."""
    if config.projection != "auto":
        return config.projection
    return "linear" if changes_cosines else "rotation"
