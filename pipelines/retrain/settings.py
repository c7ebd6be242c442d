"""What `smec retrain` and `smec rollback` take."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.runtime.settings import NAME, MethodSettings
from smec_core.config import Dims, TrainConfig
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames
from smec_core.data.uri import public_uri
from smec_core.evaluation.gate import GateSettings
from smec_core.model.vector_types import VectorType


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


class PublishSettings(BaseModel):
    """How the corpus is compressed with a new champion, and where to."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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
    """Where a challenger is refused and the corpus has changed, compress that with the champion, so that new documents
    are found."""

    @property
    def place(self) -> str:
        """The folder as records name it."""
        return public_uri(self.output).rstrip("/")


class RetrainSettings(BaseModel):
    """What `smec retrain` takes. Sections are written as such, or with dots: --set gate.min_gain=0.01."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=NAME)
    """Of the series of models: its folder in the storage, and the registered model in MLflow."""
    data: str
    """Dataset folder or URI, as it is now."""
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
        identity = {"train": method, "publish": publish, "gate": self.gate.model_dump(mode="json")}
        return identity if self.columns == DEFAULT_NAMES else identity | {"columns": self.columns.model_dump()}


class RollbackSettings(RetrainSettings):
    """What `smec rollback` takes: the --config of `smec retrain`."""

    to: str | None = Field(None, pattern=r"^v\d{4,}$")
    """Published version to return to, as v0003; default: the last release of the model before that in force, but for
    models that were rolled back from."""
