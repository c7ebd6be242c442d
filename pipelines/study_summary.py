"""What a study says at its end: the best settings, and what a trial cost beside training."""

from collections.abc import Sequence
from typing import Any

from pipelines.study import Trial
from smec_core.config import TrainConfig
from smec_core.yaml_file import dump


def overhead(trials: Sequence[Trial], began: float, concurrent: int) -> float:
    """Seconds a trial that places for trials did not train: from the start until each place had no trial any more."""
    places, last = min(concurrent, len(trials)), max(trial.began for trial in trials)
    held = places * (last - began) + sum(max(0.0, (trial.ended or last) - last) for trial in trials)
    return (held - sum(trial.seconds for trial in trials)) / len(trials)


def best_text(config: TrainConfig, best: Trial, study: str, file: str) -> str:
    """The best settings as a file of settings: what differs from the defaults of a training, and what was searched."""
    defaults = TrainConfig(dims=config.dims)
    settings: dict[str, Any] = {"dims": list(config.dims)}
    for name, value in config.model_copy(update=best.params).model_dump(mode="json", exclude={"dims"}).items():
        if name in best.params or value != getattr(defaults, name):
            settings[name] = value
    header = (
        f"# trial {best.number} of {study}, dev {best.quality:.4f}: "
        f"smec train --data DATA --config {file} --out MODEL\n"
    )
    return header + dump(settings)
