"""From a trained chain to a model that knows what made it, what it has learnt from and how good it is."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch

import smec_core
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.seen import SeenDocuments, joined
from smec_core.data.uri import public_uri
from smec_core.errors import InputError
from smec_core.evaluation.corpus_search import Encode, JudgedSearch, Parts, in_one_part
from smec_core.evaluation.evaluate import baseline_encoders, default_split, evaluate
from smec_core.model.adapter import FrozenStage
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.model.quantize import learn_int8_scales
from smec_core.training.scanned import Say, ScannedData
from smec_core.training.schedule import prefix_dims
from smec_core.training.trained import Trained
from smec_core.training.warm import WarmStart

Beside = Callable[[Model, dict[str, Encode]], Sequence[JudgedSearch]]
"""Gives searches that share the pass over the corpus in which a model and baselines are evaluated."""


def no_others(model: Model, systems: dict[str, Encode]) -> Sequence[JudgedSearch]:
    """No further search."""
    return ()


@dataclass(frozen=True)
class Parents:
    """The models that a training builds on.

    Attributes:
        base: the one whose chain it goes on with.
        champion: the one whose weights it starts from.
        warm_start: what it takes over from the champion.
    """

    base: Model | None = None
    champion: Model | None = None
    warm_start: WarmStart | None = None

    @classmethod
    def of(cls, base: Model | str | Path | None, warm_start: Model | str | Path | None, input_dim: int) -> Self:
        """Opens them, or takes open ones.

        Args:
            base: model or its folder.
            warm_start: model or its folder.
            input_dim: D of the data.

        Raises:
            InputError: no model there, or one that cannot be built on.
        """
        champion = _opened(warm_start)
        warm = None if champion is None else WarmStart.of(champion, _name(warm_start))
        return cls(None if base is None else _checked_base(base, input_dim), champion, warm)

    @property
    def base_stages(self) -> list[FrozenStage]:
        """Stages that are trained already, to which a training adds."""
        return self.base.stages if self.base else []

    @property
    def identity(self) -> dict[str, Any]:
        """What of them decides a training's result."""
        found: dict[str, Any] = {}
        if self.base is not None:
            found["base"] = self.base.fingerprint
        if self.champion is not None and self.warm_start is not None:
            found["warm_start"] = {"fingerprint": self.champion.fingerprint, "epochs": self.warm_start.epochs}
        return found


NO_PARENTS = Parents()


def finished_model(
    trained: Trained,
    dataset: Dataset,
    scanned: ScannedData,
    config: TrainConfig,
    parents: Parents,
    told: dict[str, Any],
    say: Say,
    hold_out: float = 0.0,
    parts: Parts = in_one_part,
    beside: Beside = no_others,
    is_evaluated: bool = True,
) -> Model:
    """The model of a training, evaluated on test, else on what is held out, else on dev, else on nearest documents.

    Args:
        trained: the chain.
        dataset: what it has learnt from.
        scanned: the rows of these.
        config: settings of the method.
        parents: the models that it builds on.
        told: further entries of its config.json, before those on data and versions.
        say: takes lines of progress.
        hold_out: share of the queries that the dataset has held out.
        parts: how the pass over the corpus is divided.
        beside: searches that share the pass.
        is_evaluated: whether there is such a pass.
    """
    record: dict[str, Any] = {
        "dims": prefix_dims(dataset.dim, config.dims),
        "train": config.model_dump(mode="json"),
        **told,
        "data": {
            "uri": public_uri(dataset.uri),
            "fingerprint": dataset.fingerprint,
            "rows": dataset.corpus.rows,
            "queries": dataset.queries.rows,
            "splits": dataset.summary()["splits"],
        },
        "versions": {
            "smec": smec_core.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    base, champion = parents.base, parents.champion
    if champion is not None:
        record["warm_start"] = {"fingerprint": champion.fingerprint}
    if hold_out:
        record["hold_out"] = hold_out
    if base is None:
        model = Model(trained.stages, dataset.dim, record, trained.metrics)
    else:
        model = base.extended(trained.stages[len(base.stages) :], record, trained.metrics)
    model.seen, docs = _seen(dataset, scanned, config, parents, say), scanned.docs
    model.config["int8_scales"] = learn_int8_scales(model, docs.x_KD[: docs.drawn or None])
    if not is_evaluated:
        return model
    split = default_split(dataset)
    say(f"evaluating on {'nearest documents' if split is None else split}")
    systems = baseline_encoders(torch.from_numpy(docs.moment_DD))
    model.metrics["evaluation"] = evaluate(dataset, model, split, systems, parts, beside(model, systems))
    return model


def _seen(
    dataset: Dataset, scanned: ScannedData, config: TrainConfig, parents: Parents, say: Say
) -> SeenDocuments | None:
    """What the model has learnt from; None where one that it builds on does not know its own."""
    train, dev = scanned.learnt
    if train is not None and dev is not None and (config.refit or parents.warm_start is not None):
        train = train.merge(dev)
    own = SeenDocuments.of(train, *dataset.ids)
    older = [model.seen for model in (parents.base, parents.champion) if model is not None]
    seen = joined([own, *older])
    if seen is None:
        say(
            "seen and unseen queries are not told apart: the model that this one builds on does not know what it "
            "has learnt from, as those of earlier versions; train once without --from and --warm-start"
        )
    return seen


def _opened(model: Model | str | Path | None) -> Model | None:
    return model if model is None or isinstance(model, Model) else load(model)


def _name(model: Model | str | Path | None) -> str:
    """What to call a model in messages."""
    return f"the model {model.fingerprint[:12]}" if isinstance(model, Model) else str(model)


def _checked_base(model: Model | str | Path, input_dim: int) -> Model:
    """A model whose chain goes on for such vectors.

    Raises:
        InputError: it does not.
    """
    base, name = _opened(model), _name(model)
    assert base is not None
    if base.input_dim != input_dim or not base.stages:
        raise InputError(
            f"base: {name} takes {base.input_dim} dims in {len(base.stages)} stages, the data has "
            f"{input_dim} dims; take a model that was trained on such vectors"
        )
    if set(base.dims) - {base.input_dim, *(stage.dim for stage in base.stages)}:
        raise InputError(f"base: {name} was trained with schedule=parallel, and dims can be added to stages only")
    return base
