"""What `smec retrain`, `smec rollback`, `smec status` and `smec clean` take."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.runtime.settings import A_NAME, MethodSettings
from smec_core.config import VERSION_NAME, Dims, Settings, TrainConfig, VectorType
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames
from smec_core.data.uri import public_uri
from smec_core.evaluation.gate_settings import GateSettings


class ChallengerSettings(MethodSettings):
    """How challengers are trained: every setting of the method, and on what."""

    start: Literal["fresh", "warm"] = "fresh"
    """warm: at the champion's weights and in one pass, which is faster, as `smec train --warm-start`; the first model
    of a series is trained fresh."""

    @model_validator(mode="after")
    def _check_compatible(self) -> Self:
        if self.compatible and self.start != "warm":
            raise ValueError("compatible: only a warm start can be; set start: warm, or compatible: 0")
        return self


class PublishSettings(Settings):
    """How the corpus is compressed with a new champion, and where to."""

    output: str
    """Published folder or URI."""
    dim: Dims
    """Dims to keep, as `smec compress --dim`."""
    dtype: VectorType = "float32"
    """Number type of the vectors, as `smec compress --dtype`."""
    keep: int = Field(3, ge=1)
    """For a rollback: how many of the last releases stay, with their vectors, and of how many of the last models the
    last release; the one in force stays in any case."""
    refresh: bool = True
    """Where the corpus has changed and a challenger is refused, or nothing but files is new, compress it with the
    champion, so that new documents are found."""

    @property
    def place(self) -> str:
        """The folder as records name it."""
        return public_uri(self.output).rstrip("/")


class RetrainSettings(Settings):
    """Train a challenger on the current data, and release it if it beats the champion; for schedulers.

    Reads and validates the data, measures its drift, trains, compares champion, challenger, truncation and PCA on
    queries that no champion was ever trained on, and where the gate holds: compresses the corpus into a new version,
    sets the alias `champion` in MLflow's registry, and puts the version in force. Nothing new: it ends at once.
    Killed anywhere, the old release stays in force, and the same command goes on.

    With --compatible the challenger starts at the champion's weights and learns to find its documents, too: an index
    can be refreshed bit by bit. The gate then asks for that as well.

    Sections are written as such, or with dots: --set gate.min_gain=0.01. docs/operations.md has an example.

    Example: smec retrain --config retrain.yaml

    Exit codes: 0 released, or nothing to do; 2 bad data; 3 the gate refused; 4 another one is running.
    """

    name: Annotated[str, A_NAME]
    """Of the series of models: its folder in the storage, and the registered model in MLflow."""
    data: str
    """Folder or URI of the current dataset."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    storage: str
    """Folder or URI that all nodes reach, for champions, records and the state of trainings."""
    train: ChallengerSettings
    """How challengers are trained."""
    publish: PublishSettings
    """How the corpus is compressed, and where to."""
    gate: GateSettings = GateSettings()
    """What a challenger must reach."""

    def identity(self) -> dict[str, Any]:
        """What decides the outcome for given data: where it and the data are as before, there is nothing to do."""
        method = self.train.model_dump(mode="json", include={*TrainConfig.model_fields, "start"})
        publish = self.publish.model_dump(mode="json", exclude={"keep"})
        identity = {"train": method, "publish": publish, "gate": self.gate.identity()}
        return identity if self.columns == DEFAULT_NAMES else identity | {"columns": self.columns.model_dump()}


class RollbackSettings(RetrainSettings):
    """Put an earlier release of smec retrain in force again: its model and its vectors, together.

    Without --to, the last release of the model before; --to also goes to an older corpus of the same model.

    Example: smec rollback --config retrain.yaml
    """

    to: Annotated[str | None, VERSION_NAME] = Field(None, coerce_numbers_to_str=True)
    """Published version to return to, as v0003; default: the last release of the model before that in force, but for
    models that were rolled back from."""


class StatusSettings(RetrainSettings):
    """Tell what of a series is in force, what its last cycles decided, and what is damaged; changes nothing.

    Compares records, models, the registry, CURRENT and the vectors with what was written, as every start of smec
    retrain does. For monitors: --json FILE.

    Example: smec status --config retrain.yaml --deep

    Exit codes: 0 all is as it was written; 2 something is damaged, each with its cure, or gate.anchor names no release.
    """

    deep: bool = False
    """Read all bytes of the vectors, too, and the models in MLflow's registry; else sizes and stamps tell."""


class CleanSettings(RetrainSettings):
    """Remove what a series does not need any more: old releases, by publish.keep, and what killed runs have left.

    Never what is in force, the anchor, what is kept for a rollback, what an interrupted cycle goes on with, or what
    another process holds. Runs and versions in MLflow stay; so does all that is not of this series.

    Example: smec clean --config retrain.yaml --dry-run
    """

    dry_run: bool = False
    """Print what would go, and remove nothing."""
