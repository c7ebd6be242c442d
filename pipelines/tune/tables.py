"""What `smec tune` prints at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.storage.study import Trial
from smec_core.config import TrainConfig
from smec_core.yaml_file import dump

MOST_SHOWN = 10


def trials_table(summary: dict[str, Any]) -> Table:
    """The best trials and the defaults."""
    trials = sorted(summary["trials"], key=lambda one: (one["state"] != "finished", -_last(one)))
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items() if count)
    names = list(summary["space"])
    table = Table(title=f"dev {summary['measure']}, {summary['objective']}: {states}")
    for name in ["trial", "state", "quality", "seconds", *names]:
        table.add_column(name, justify="right")
    for trial in [one for number, one in enumerate(trials) if number < MOST_SHOWN or one["number"] == 1]:
        values = [Trial.model_validate(trial).value_of(name) for name in names]
        quality = f"{_last(trial):.4f}" if trial["steps"] else ""
        table.add_row(str(trial["number"]), trial["state"], quality, f"{trial['seconds']:.0f}", *values)
    if last := summary["last_start"]:
        overhead = last["overhead_seconds_per_trial"]
        table.caption = (
            f"{last['trials']} trials in {last['seconds']:.0f} s; a trial took {overhead:.1f} s beside training"
        )
    return table


def _last(trial: dict[str, Any]) -> float:
    return float(trial["steps"][-1]["quality"]) if trial["steps"] else 0.0


def confirmed_table(confirmed: dict[str, Any]) -> Table:
    """The best settings beside the defaults on test."""
    table = Table(title=f"nDCG@10 on test, {confirmed['queries']} queries, {confirmed['seeds']} seeds")
    for name in ("dims", "best settings", "defaults", "gain", "95 % interval"):
        table.add_column(name, justify="right")
    for dim, one in confirmed["dims"].items():
        best, defaults = (sum(one[name]) / len(one[name]) for name in ("best", "defaults"))
        low, high = one["interval"]
        table.add_row(dim, f"{best:.4f}", f"{defaults:.4f}", f"{one['gain']:+.4f}", f"{low:+.4f} to {high:+.4f}")
    return table


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
