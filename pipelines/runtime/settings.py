"""What jobs that train are told about the cluster."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from smec_core.config import MEMORY_BUDGET, Settings, TrainConfig, matching
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Names that are a folder of their own, and nothing else."""
A_NAME = matching(NAME, "of letters, digits, '.', '_' and '-', with a letter or a digit first, as nightly-2")


class ClusterSettings(Settings):
    """On what to train."""

    workers: str = Field("1", coerce_numbers_to_str=True, json_schema_extra={"metavar": "N|MIN:MAX"})
    """Ray Train workers; they share every step, so the result does not depend on their number but for rounding. MIN:MAX
    takes as many as the cluster has room for, goes on with fewer when a node is lost, and grows when there are more."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """CPUs, and torch threads, of each worker; default: 2 where one worker trains on a machine on which smec starts Ray
    and that has two, else 1. Another number changes the last bits of a model; a run that goes on keeps its own."""
    gpu: Literal["auto", "on", "wait", "off"] = "auto"
    """Train on GPUs, one a worker: auto where the cluster has enough now; wait asks its autoscaler for them."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps from one checkpoint to the next; one is also made after every stage. The last two are kept."""
    max_failures: int = Field(3, ge=0)
    """How often lost workers are replaced before the run fails. Nodes that the cluster takes away do not count."""
    resize_seconds: float = Field(60.0, ge=0)
    """With workers=MIN:MAX, how often to look whether there is room for more."""
    memory_budget: float = Field(MEMORY_BUDGET, gt=0)
    """GiB of each node's memory for the vectors that a training holds. Documents that have no room are not in the
    sample (sample_rows)."""
    scratch: str | None = None
    """Folder on a local disk of every node, for what shared memory has no room for; default: the temporary folder."""

    @field_validator("workers")
    @classmethod
    def _is_range(cls, workers: str) -> str:
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", workers):
            raise ValueError("must be a number of at least 1, or MIN:MAX")
        least, _, most = workers.partition(":")
        if most and int(least) > int(most):
            raise ValueError("MIN must not be above MAX")
        return workers

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and most workers."""
        least, _, most = self.workers.partition(":")
        return int(least), int(most or least)

    @property
    def is_one_process(self) -> bool:
        """Whether one worker is all that there will be."""
        return self.worker_range == (1, 1)


class MethodOnly(TrainConfig):
    """How to train, among other settings."""

    def method(self) -> TrainConfig:
        """The settings that decide what is computed."""
        return TrainConfig(**{name: getattr(self, name) for name in TrainConfig.model_fields})


class MethodSettings(ClusterSettings, MethodOnly):
    """How to train, and on what."""


class JobSettings(MethodSettings):
    """What a job that trains takes: from where, how, on what, and where its state goes."""

    data: str
    """Dataset folder or URI: corpus, queries and qrels in Parquet."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    storage: str | None = None
    """Folder or URI that all nodes reach, where runs keep their state; default: .smec-runs beside the model."""
    name: Annotated[str | None, A_NAME] = None
    """Run name; default: a hash of settings and data. A finished run of this name is returned, not trained again."""
