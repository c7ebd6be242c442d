"""What `smec tune` prints at its end."""

from typing import Any

from rich.table import Table

from pipelines.storage.study import Trial

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
