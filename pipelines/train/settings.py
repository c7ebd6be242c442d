"""What `smec train` takes."""

from pydantic import Field

from pipelines.runtime.settings import JobSettings
from pipelines.storage.model_folder import LocalPath


class TrainingSettings(JobSettings):
    """What decides a training, and where its state goes."""

    base: str | None = Field(None, json_schema_extra={"metavar": "MODEL"})
    """Model folder to add smaller dims to: the dims below its smallest become rotations of its smallest
    block, so that the dims it has keep their results."""
    warm_start: str | None = Field(None, json_schema_extra={"metavar": "MODEL"})
    """Model folder, that of the champion, whose weights the training starts at: one pass on train +
    dev, in which each stage takes as many epochs as the champion kept, but at least a quarter of the most. The kinds of
    projection and the dims that each stage keeps are the champion's, so tau, gumbel_noise, ads_lr_factor, init,
    hidden_dim and what dev and the guard go by (favour, dev_fraction, dev_queries, dev_corpus, guard,
    patience, score_steps, guard_tolerance, refit) do nothing."""
    hold_out: float = Field(0.0, ge=0, lt=1)
    """Share of the queries, by a hash of their id, that are neither learnt from nor chosen by, whatever the split: for
    `smec evaluate --split held_out`."""


class TrainSettings(TrainingSettings):
    """Train a nested embedding on Ray, evaluate it, store it and record it in MLflow.

    Precedence: flag, --set, --config, --preset, default. The same settings and data give the same run name; a finished
    run is returned and not trained again, an interrupted one goes on from its last checkpoint.

    --warm-start continues a model of the same dims on the current data, in one pass without a guard, so compare the
    two before you use the new one. --compatible is --set compatible=1; another number weighs the search
    of old documents differently.

    --dry-run prints the plan, times a few real steps of each of its stages, and makes nothing.

    Example: smec train --data data/products --dims 384,192,96 --out models/products --workers 4
    """

    out: LocalPath
    """Model folder to write; an earlier model there is replaced once the new one is whole."""
    dry_run: bool = False
    """Check settings and data, print the plan, how long it takes and what it holds, and end."""
