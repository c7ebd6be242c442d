"""Whether a challenger may take the champion's place, by queries that no champion was ever trained on.

Shapes: Q queries.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from smec_core.data.segments import Segments, segment_name
from smec_core.evaluation.gate_settings import GateSettings
from smec_core.evaluation.significance import p_text, randomisation_p
from smec_core.shown import safe_line

CHALLENGER, CHAMPION, ANCHOR, OLD_DOCUMENTS = "challenger", "champion", "anchor", "new queries on old documents"
BASELINES = ("truncation", "pca")
MOST_FIGURES = 100
"""Segments whose figures a run has: those with the largest losses."""

Scores = Mapping[str, Mapping[int, np.ndarray]]
"""nDCG@10 (Q) of each gate query, by system and dim."""
Means = dict[str, dict[int, float]]
"""Their means."""


class SegmentVerdict(NamedTuple):
    """What the gate says of a segment.

    Attributes:
        value: of its column; None for null.
        queries: of its own, of the gate queries.
        means: mean nDCG@10 by system and dim.
        loss: the largest of a dim, against any system.
        problem: what keeps the challenger out, if anything.
    """

    value: str | None
    queries: int
    means: Means
    loss: float
    problem: str | None


class SegmentVerdicts(NamedTuple):
    """What the gate says of the segments.

    Attributes:
        column: what divides the queries.
        held: the segments with enough queries, most first.
        left: how many others there are, and how many queries these have together.
    """

    column: str
    held: list[SegmentVerdict]
    left: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        held = [
            {"value": one.value, "queries": one.queries, "holds": one.problem is None, "ndcg@10": _plain(one.means)}
            for one in self.held
        ]
        return {"column": self.column, "held": held, "left": {"segments": self.left[0], "queries": self.left[1]}}

    def figures(self) -> Iterator[tuple[str, float]]:
        """The largest losses, each with a name that fits into a path."""
        for one in sorted(self.held, key=lambda one: -one.loss)[:MOST_FIGURES]:
            name = f"{self.column} {segment_name(one.value)}"
            legal = re.sub(r"[^\w. -]", "_", name)
            if legal != name:
                legal += f" {hashlib.sha256(repr(one.value).encode()).hexdigest()[:6]}"
            yield legal, one.loss


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        problems: what keeps the challenger out; none where it has passed.
        queries: gate queries.
        means: mean nDCG@10 by system and dim.
        parts: the same of seen and of unseen queries, where either are enough to decide.
        gain: mean gain over the dims on the champion, or without one on the better baseline.
        p: of that gain, by a paired randomisation test.
        why: what made it pass or not, in words.
        segments: of the queries, where the gate is held by them.
    """

    problems: list[str]
    queries: int
    means: Means
    parts: dict[str, tuple[int, Means]]
    gain: float
    p: float
    why: str
    segments: SegmentVerdicts | None = None

    @property
    def holds(self) -> bool:
        """Whether the challenger may take over."""
        return not self.problems

    @property
    def reason(self) -> str:
        """The decision in one line."""
        return f"{'PASSED' if self.holds else 'REFUSED'}: {self.why}"

    def figures(self) -> Iterator[tuple[str, int, float]]:
        """Name of the system, dim and mean of all queries, then of the parts, whose names have the part in front.

        Of segments the largest loss of a dim, with 0 as the dim.
        """
        for place, means in {"": self.means, **{f"{part}/": means for part, (_, means) in self.parts.items()}}.items():
            yield from ((place + name, dim, mean) for name, by_dim in means.items() for dim, mean in by_dim.items())
        if self.segments is not None:
            yield from ((f"loss/{name}", 0, loss) for name, loss in self.segments.figures())

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {"holds": self.holds, "problems": self.problems, "queries": self.queries}
        parts = {
            label: {"queries": queries, "ndcg@10": _plain(means)} for label, (queries, means) in self.parts.items()
        }
        segments = {} if self.segments is None else {"segments": self.segments.as_json()}
        return plain | {"ndcg@10": _plain(self.means), "gain": self.gain, "p": self.p} | parts | segments


def _plain(means: Means) -> dict[str, dict[str, float]]:
    return {name: {str(dim): mean for dim, mean in by_dim.items()} for name, by_dim in means.items()}


def judge(
    scores: Scores, settings: GateSettings, seen_Q: np.ndarray | None = None, segments: Segments | None = None
) -> Verdict:
    """Compares the challenger with the champion, where there is one, and with the baselines.

    Without a champion there is nothing to lose: it must not be below the baselines, and that is all.

    Args:
        scores: of the challenger, of `truncation` and `pca`, and where there is one of the champion, and of the anchor
            where that is another model; with OLD_DOCUMENTS those of the challenger's queries on the champion's
            documents.
        settings: what is asked for.
        seen_Q: whether champion or challenger has learnt from a relevant document of each query; None: not known.
        segments: of the queries, each of which is looked at by itself where it has enough.
    """
    challenger = scores[CHALLENGER]
    queries = len(next(iter(challenger.values())))
    means = _means(scores, slice(None))
    parts = _parts(scores, settings, seen_Q)
    overall = {name: float(np.mean(list(by_dim.values()))) for name, by_dim in means.items()}
    champion = CHAMPION if CHAMPION in scores else max(BASELINES, key=overall.__getitem__)
    gain_Q = np.mean([challenger[dim] - scores[champion][dim] for dim in challenger], axis=0)
    gain, p = float(gain_Q.mean()), randomisation_p(gain_Q)
    problems = []
    if champion == CHAMPION:
        if gain < settings.min_gain:
            problems.append(f"the mean over the dims gains {gain:+.4f}, gate.min_gain asks for {settings.min_gain}")
        elif p > settings.significance:
            problems.append(f"the gain may be luck ({p_text(p)}, gate.significance asks for {settings.significance})")
    for name in BASELINES:
        if overall[CHALLENGER] < overall[name] - settings.max_below:
            problems.append(
                f"the mean over the dims, {overall[CHALLENGER]:.4f}, is below {name}'s {overall[name]:.4f} by more "
                f"than gate.max_below, {settings.max_below}"
            )
    for label, some in {"": means, **{f" on {label} queries": some for label, (_, some) in parts.items()}}.items():
        for loss, dim, name in _losses(some):
            if loss > settings.max_loss:
                lost = f"{dim} dims lose {loss:.4f} against {name}{label}"
                problems.append(f"{lost}, gate.max_loss is {settings.max_loss}")
    by_segment = None if segments is None else _judge_segments(scores, settings, segments)
    if by_segment is not None:
        problems += [one.problem for one in by_segment.held if one.problem is not None]
    if OLD_DOCUMENTS in scores:
        loss = overall[CHAMPION] - overall[OLD_DOCUMENTS]
        if loss > settings.max_old_loss:
            problems.append(
                f"new queries lose {loss:.4f} on old documents, gate.max_old_loss is {settings.max_old_loss}"
            )
    against = f"{gain:+.4f} nDCG@10, mean over the dims and {queries} gate queries, against the champion"
    if champion == CHAMPION:
        asked = "not asked for" if settings.significance == 1 else f"at most {settings.significance} asked for"
        figures = f"{against} (at least {settings.min_gain} asked for), {p_text(p)} ({asked})"
        passed = f"{figures}; no dim loses more than {settings.max_loss}"
    else:
        figures = ", ".join(f"{name} {mean:.4f}" for name, mean in overall.items()) + f" on {queries} gate queries"
        below = f" by more than {settings.max_below}" if settings.max_below else ""
        passed = (
            f"there is no champion to beat yet, and it is not below the baselines{below}: mean nDCG@10 of {figures}"
        )
    why = f"{'; '.join(problems)}. Measured: {figures}" if problems else passed
    if by_segment is not None:
        why += f"; by {_told(by_segment, settings)}"
    return Verdict(problems, queries, means, parts, gain, p, why, by_segment)


def _losses(means: Means) -> Iterator[tuple[float, int, str]]:
    """What the challenger loses, its dim, and against what."""
    for name in (CHAMPION, ANCHOR, *BASELINES):
        yield from ((mean - means[CHALLENGER][dim], dim, name) for dim, mean in means.get(name, {}).items())


def _judge_segments(scores: Scores, settings: GateSettings, segments: Segments) -> SegmentVerdicts:
    held, left = [], []
    for value, rows in zip(segments.values, segments.rows, strict=True):
        if len(rows) < settings.min_queries:
            left.append(len(rows))
            continue
        means = _means(scores, rows)
        loss, dim, name = max(_losses(means))
        count = sum(loss > settings.max_loss for loss, _, _ in _losses(means))
        problem = (
            f"{dim} dims lose {loss:.4f} against {name} on the {len(rows)} queries of {safe_line(segments.column)} "
            f"{segment_name(value)}{f' (the largest of {count} losses there)' if count > 1 else ''}, gate.max_loss is "
            f"{settings.max_loss}"
        )
        held.append(SegmentVerdict(value, len(rows), means, loss, problem if count else None))
    return SegmentVerdicts(segments.column, held, (len(left), sum(left)))


def _told(segments: SegmentVerdicts, settings: GateSettings) -> str:
    refused = sum(one.problem is not None for one in segments.held)
    others = f"; {segments.left[0]} more with fewer than {settings.min_queries} queries" if segments.left[0] else ""
    losing = f"{refused} of {len(segments.held)} segments lose more than gate.max_loss"
    return f"{safe_line(segments.column)}: {losing}{others}"


def _means(scores: Scores, keep: slice | np.ndarray) -> Means:
    return {
        name: {dim: float(value_Q[keep].mean()) for dim, value_Q in by_dim.items()} for name, by_dim in scores.items()
    }


def _parts(scores: Scores, settings: GateSettings, seen_Q: np.ndarray | None) -> dict[str, tuple[int, Means]]:
    """Queries and means of the two parts; none where one is all there is."""
    if seen_Q is None or seen_Q.all() or not seen_Q.any():
        return {}
    masks = {"seen": seen_Q, "unseen": ~seen_Q}
    return {
        label: (int(keep_Q.sum()), _means(scores, keep_Q))
        for label, keep_Q in masks.items()
        if keep_Q.sum() >= settings.min_queries
    }
