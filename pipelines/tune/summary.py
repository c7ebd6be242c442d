"""What a study says at its end: the best settings, and what a trial cost beside training."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.storage.study import Trial
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


def outcome_text(summary: Mapping[str, Any]) -> str:
    """What a study found, in a few sentences."""
    best = next(trial for trial in summary["trials"] if trial["number"] == summary["best"][0])
    values = ", ".join(f"{name} {value}" for name, value in best["params"].items())
    quality, states = best["steps"][-1]["quality"], summary["states"]
    text = f"{states['finished']} trials finished, {states['stopped']} were stopped early, {states['failed']} failed. "
    text += (
        f"Best on dev, which it was chosen by: trial {best['number']} ({values}), {summary['measure']} {quality:.4f}"
    )
    text += "." if summary["defaults"] is None else f"; the defaults {summary['defaults']:.4f}."
    if confirmed := summary.get("confirmed"):
        gains = (f"{one['gain']:+.4f} at {dim} dims" for dim, one in confirmed["dims"].items())
        text += f" On test, {confirmed['queries']} queries, it gains {', '.join(gains)} on the defaults."
    return text
