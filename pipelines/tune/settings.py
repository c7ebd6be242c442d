"""What `smec tune` takes."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipelines.runtime.settings import A_NAME, ClusterSettings, JobSettings
from pipelines.storage.model_folder import LocalPath


class TuneSettings(JobSettings):
    """Search settings of the method on Ray Tune, by dev figures: Optuna proposes, ASHA ends what falls behind.

    The first trial is the defaults: what --set and --config give, else those of smec train. A killed study goes on
    with the same command; more --trials extend it. OUT/best.yaml is a --config of smec train.

    Example: smec tune --data data/products --dims 384,192,96 --space smec --trials 30 --out tuned/products
    """

    space: str
    """Search space: a YAML file, or one of smec, full, quick."""
    out: LocalPath
    """Folder for the results: best.yaml, summary.json, and the model with --refit."""
    name: Annotated[str | None, A_NAME] = None
    """Study name; default: a hash of space, settings and data. A study of this name goes on."""
    storage: str | None = None
    """Folder or URI that all nodes reach, where studies keep their state; default: OUT/.smec-study."""
    workers: str = Field("1", coerce_numbers_to_str=True, json_schema_extra={"metavar": "N"})
    """Workers of each trial; with 1 a trial trains in its own process."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs, and torch threads, of each worker."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Train on GPUs, one a worker: auto where the cluster has enough when the study begins."""
    trials: int = Field(20, ge=1)
    """Trials of the study, those of earlier starts included."""
    hours: float | None = Field(None, gt=0)
    """End after this time, too; trials that run then are taken up by the next start."""
    objective: str = Field("mean", coerce_numbers_to_str=True)
    """What to search for: mean (the dev score over all dims), one dim, or either with ",seconds" behind it: quality
    against seconds of training, a Pareto front, for which no trial is stopped early."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; default: as many as the cluster has CPUs, GPUs and memory for."""
    confirm: int = Field(0, ge=0)
    """Seeds with which the best settings and the defaults are trained again, on train + dev, and compared on test."""
    train_best: bool = False
    """Train the best settings on train + dev, into OUT/model."""

    @field_validator("workers")
    @classmethod
    def _is_number(cls, workers: str) -> str:
        if ":" in workers:
            raise ValueError("must be one number: a trial whose workers come and go cannot be compared")
        return workers

    @field_validator("gpu", mode="before")
    @classmethod
    def _is_there(cls, gpu: Any) -> Any:
        if gpu == "wait":
            # how many trials run at once goes by the nodes that are up
            raise ValueError("a study needs its GPUs to be there and waits for none; must be auto, on or off")
        return gpu

    @field_validator("objective")
    @classmethod
    def _is_objective(cls, objective: str) -> str:
        if not re.fullmatch(r"(mean|\d+)(, *seconds)?", objective):
            raise ValueError('must be mean, a dim, or either with ",seconds" behind it')
        return objective

    def cluster(self) -> ClusterSettings:
        """The settings that a training takes."""
        return ClusterSettings(**self.model_dump(include=set(ClusterSettings.model_fields)))
