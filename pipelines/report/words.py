"""The words of the report page: what speaks for and against a model, why a stage kept what it kept, and numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.report.figures import Curve
from pipelines.report.files import Evaluation, Interval, Stage
from smec_core.data.seen import LEAST_QUERIES

NDCG, NEIGHBOURS = "nDCG@10", "neighbour recall@10"
HARMLESS = ("rotation", "selection")
"""Projections that change no earlier prefix."""
NAMES = {NDCG: "ndcg@10", NEIGHBOURS: "neighbour_recall@10"}
SHOWN = 5e-5
"""What is smaller is not seen in four digits."""
PROJECTIONS = {"linear": "linear map", "rotation": "rotation", "residual_mlp": "residual MLP"}


class Row(NamedTuple):
    """The result at one dim; bytes of a float32 vector, kept as a share of the full-dimension score.

    `interval` and `kept_interval` are those of 95 % over the queries of `model` and `kept`.
    """

    dim: int
    bytes: int
    compression: float
    model: float
    truncation: float | None
    pca: float | None
    kept: float
    interval: Interval | None = None
    kept_interval: Interval | None = None


def notes_of(
    full_dim: int, rows: Sequence[Row], measure: str, found: Evaluation, tested: bool
) -> list[tuple[str, str]]:
    """What speaks for and against shipping, as (good | warn | info, sentence).

    Where there are intervals, a difference whose interval holds 0 speaks neither for nor against.
    """
    if not rows:
        return []
    if not any(row.model for row in rows):
        return [("warn", f"{measure} is 0 at every dim: are the judgements those of this corpus?")]
    notes = [("warn", f"{found.advice[0].upper()}{found.advice[1:]}.")] if found.advice else []
    gains = {row.dim: round(row.model - row.pca, 3) + 0.0 for row in rows if row.pca is not None}
    unsure = _unsure(found.intervals.get("pca", {}), 0.0)
    if above := {dim: gain for dim, gain in gains.items() if gain >= 0 and dim not in unsure}:
        where = "every dim" if above == gains else f"{_listed([str(dim) for dim in above])} dims"
        about = " to ".join(dict.fromkeys(f"{gain:+.3f}" for gain in (min(above.values()), max(above.values()))))
        notes.append(("good", f"{'Above' if found.intervals else 'At or above'} PCA at {where}: {about} {measure}."))
    if below := [f"{dim} dims (−{-gain:.3f})" for dim, gain in gains.items() if gain < 0 and dim not in unsure]:
        notes.append(("warn", f"Below PCA at {_listed(below)}."))
    if equal := [str(dim) for dim in gains if dim in unsure]:
        notes.append(("info", f"No clear difference from PCA at {_listed(equal)} dims: the 95 % interval includes 0."))
    for label, part in found.parts.items():
        unsure = _unsure(part.intervals.get("pca", {}), 0.0)
        under = [dim for dim, value in part.baselines.pca.items() if part.ndcg[dim] < value and dim not in unsure]
        if under and (part.queries or 0) >= LEAST_QUERIES:
            where = _listed([f"{dim} dims (−{part.baselines.pca[dim] - part.ndcg[dim]:.3f})" for dim in sorted(under)])
            notes.append(("warn", f"Below PCA on {part.queries} {label} queries at {where}."))
    if not gains:
        notes.append(("info", "No baselines in this folder: how truncation and PCA would do is not known here."))
    if measure == NDCG and found.baselines.full is not None:
        unsure = _unsure(found.intervals.get("kept", {}), 1.0)
        if whole := [f"{row.dim}" for row in rows if row.kept >= 1 and row.dim not in unsure]:
            better = "Better than" if found.intervals else "As good as"
            more = "" if found.intervals else ", or better,"
            notes.append(("good", f"{better} the original {full_dim} dims{more} at {_listed(whole)} dims."))
        if lost := [f"{row.dim} dims ({percent(row.kept)})" for row in rows if row.kept < 1 and row.dim not in unsure]:
            notes.append(("warn", f"Below the original embeddings at {_listed(lost)}."))
        if equal := [str(row.dim) for row in rows if row.dim in unsure]:
            where = f"the original {full_dim} dims at {_listed(equal)} dims"
            notes.append(("info", f"No clear difference from {where}: the 95 % interval includes 100%."))
    elif measure == NEIGHBOURS:
        text = "Scored without judgements: by how well neighbours are kept, not by how well users find what they want."
        notes.append(("info", text))
    if not tested:
        text = "No test evaluation in this folder: these are the first pass's scores on dev, which training chose by."
        notes.append(("warn", text))
    return notes


def _unsure(intervals: Mapping[int, Interval], level: float) -> set[int]:
    """Dims whose interval holds a level."""
    return {dim for dim, (low, high) in intervals.items() if low <= level <= high}


def reason_of(stage: Stage, dev: Curve) -> str | None:
    """Why the stage kept what it kept, where the curve alone would say something else."""
    peak = max(score for score in dev.points.values() if score is not None)
    if stage.dev_score is None or peak <= stage.dev_score + SHOWN:
        return None
    # after a closed form, a rotation has to show a gain, too
    gains_count = stage.projection in HARMLESS and stage.order is None
    luck = "" if gains_count else "their gain over the start may be luck, or "
    return (
        f"Scores of the {named(stage.projection)} above the star do not count: {luck}they cost an earlier prefix, or "
        "the new one, more than guard_tolerance, or a part of the dev queries fell below PCA or the closed form."
    )


def named(projection: str) -> str:
    """A projection for a person."""
    return PROJECTIONS.get(projection, projection)


def _listed(values: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(values[:-1]), values[-1])))


def number(value: float | None, digits: int = 3) -> str:
    """`0.755`, `5,183` with digits=0, and a dash for what is not there."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """`109%`, `85.8%`; below 100% cut, not rounded, so that no loss is ever shown as none."""
    if not math.isfinite(share):
        return "–"
    return f"{share:.0%}" if share >= 1 else f"{math.floor(1000 * share + 1e-6) / 10:g}%"


def span(interval: Interval) -> str:
    """`98.2% to 108%`."""
    return " to ".join(map(percent, interval))


def gained(value: float) -> str:
    """`+0.011`, `−0.003`."""
    return f"{round(value, 3) + 0:+.3f}".replace("-", "−")


def count(value: float) -> str:
    """`5,183`, and `2.45 M` from a million on."""
    return f"{value / 1e6:,.3g} M" if value >= 1e6 else number(value, 0)


def duration(seconds: float) -> str:
    """`96 s`, `41 min`, `5.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def plain(value: Any) -> str:
    """A config value as a person writes it."""
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(
            f"{key} ({plain(part)})" if isinstance(part, dict) else f"{key} {plain(part)}"
            for key, part in value.items()
        )
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
