"""How the data of a cycle differ from those that the champion was trained on, and whether they fit it at all."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.console import say, warn
from pipelines.data.opened import read_segments
from pipelines.retrain.ledger import Ledger, QueryScores, Release
from pipelines.retrain.settings import RetrainSettings
from smec_core.data.dataset import HELD_OUT, Dataset
from smec_core.data.records import read_record
from smec_core.data.segments import Segments
from smec_core.data.tables import find_manifest
from smec_core.data.uri import open_filesystem, public_uri, without_slash
from smec_core.errors import InputError
from smec_core.evaluation.drift import SAME_COSINE, Drift, Reference

ADVICE = (
    "vectors of two embedding models cannot be compared, so neither the champion nor its documents are of use with "
    "these: embed with the earlier one, or begin a new series (another `name` and `publish.output`) and switch to that "
    "as a whole"
)


def encoder_of(data: str) -> str | None:
    """Fingerprint of the encoder that made a dataset, where `smec ingest` has left one."""
    filesystem, root = open_filesystem(without_slash(data))
    path = find_manifest(filesystem, root)
    manifest = read_record(filesystem, path, "ingest the dataset again") if path else None
    return manifest.get("encoder_fingerprint") if manifest else None


def check_data(
    settings: RetrainSettings, dataset: Dataset, dims: tuple[int, ...], champion: tuple[tuple[int, ...], float] | None
) -> Segments | None:
    """Refuses what would be trained in vain.

    Args:
        settings: of the series.
        dataset: the data, without the gate queries, which are a split of their own.
        dims: that are trained.
        champion: its dims, and the share of gate queries that it was trained with; None before the first release.

    Returns:
        Segments of the gate queries, where the gate is held by them.

    Raises:
        InputError: judgements, `gate.by`, or settings that do not fit the data or the champion.
    """
    if dataset.train_judgements() is None:
        raise InputError(f"{public_uri(settings.data)}: there is no qrels/train; retraining needs judgements")
    queries = len(dataset.splits[HELD_OUT])
    if queries < settings.gate.min_queries:
        raise InputError(
            f"gate: {queries} judged queries are kept out for it (gate.fraction {settings.gate.fraction}), too few "
            f"to decide (gate.min_queries {settings.gate.min_queries}); judge more, or give it a larger share"
        )
    told = ", ".join(map(str, dims))
    if untrained := sorted(set(settings.publish.dim) - set(dims), reverse=True):
        raise InputError(
            f"publish.dim: {untrained[0]} is none of the trained dims, {told}, so no gate looks at it; add it to "
            "train.dims"
        )
    segments = None
    if settings.gate.by is not None:
        [[segments]] = read_segments(dataset, [settings.gate.by], [HELD_OUT])
    if segments is not None and len(segments.rows[0]) < settings.gate.min_queries:
        warn(
            f"gate.by: no value of {settings.gate.by} has gate.min_queries, {settings.gate.min_queries}, gate queries "
            f"(the most are {len(segments.rows[0])}), so that none is looked at by itself"
        )
    if champion is None:
        return segments
    theirs, fraction = champion
    if settings.gate.fraction > fraction:
        raise InputError(
            f"gate.fraction: {settings.gate.fraction} takes queries that the champion has learnt from, which was "
            f"trained with {fraction}; leave it at that, or begin a new series (another `name` and `publish.output`)"
        )
    # data of other dims count as another embedding model
    if settings.train.start == "warm" and dims[0] == theirs[0] and dims != theirs:
        raise InputError(
            f"train.dims: {told}, but a warm start keeps those of the champion, {', '.join(map(str, theirs))}; set "
            "train.start: fresh for this change"
        )
    return segments


def drift_since(ledger: Ledger, champion: Release, data: str, encoder: str | None, now: Reference) -> Drift:
    """How far the data are from those of the champion.

    Args:
        ledger: of the series.
        champion: the release in force.
        data: dataset folder or URI.
        encoder: fingerprint of what made it, if that is known.
        now: what it is like.

    Raises:
        InputError: another embedding model made it.
    """
    before, _ = ledger.reference(champion.trained_in)
    encoder_before, shown = ledger.cycle(champion.trained_in)["encoder"], public_uri(data)
    dims, dims_before = len(now.mean_D), len(before.mean_D)
    if dims != dims_before:
        raise InputError(f"{shown}: {dims} dims, but the champion takes {dims_before}; {ADVICE}")
    if None not in (encoder, encoder_before) and encoder != encoder_before:
        raise InputError(f"{shown}: its manifest names another encoder than that of the champion's data; {ADVICE}")
    drift = Drift.between(before, now)
    if drift.same_cosine is not None and drift.same_cosine < SAME_COSINE:
        raise InputError(
            f"{shown}: the embedding model has changed: half of {drift.common} documents have a cosine of at most "
            f"{drift.same_cosine:.2f} with their own earlier vector; {ADVICE}"
        )
    kept = "-" if drift.neighbours_kept is None else f"{drift.neighbours_kept:.3f}"
    say(
        f"drift since the champion's data: mean {drift.mean_shift:.4f}, covariance {drift.covariance_shift:.4f}, "
        f"neighbours kept {kept}"
    )
    return drift


def by_query(dataset: Dataset, by_dim: Mapping[int, np.ndarray]) -> QueryScores:
    """The score of each gate query, by its id and dim."""
    query_ids = dataset.ids[1].ids_of(dataset.splits[HELD_OUT].query_row_Q)
    return {
        name: {str(dim): float(value_Q[row]) for dim, value_Q in by_dim.items()} for row, name in enumerate(query_ids)
    }


def known_queries(ledger: Ledger, release: Release, now: QueryScores) -> dict[str, Any] | None:
    """What a release reached when it was promoted, and what it or another reaches now on the same gate queries.

    Args:
        ledger: of the series.
        release: one of its releases.
        now: nDCG@10 on each of today's gate queries, by id and dim.

    Returns:
        `queries`, `then`, `now`, `fresh_queries` and `fresh`: means over the dims that both have; None where no query
        is known from then.
    """
    _, then = ledger.reference(release.trained_in)
    known = [name for name in now if name in then]
    fresh = [name for name in now if name not in then]
    if not known:
        return None
    # in an order: sums of the same figures in another differ in the last bit
    dims = [dim for dim in now[known[0]] if dim in then[known[0]]]

    def mean(scores: QueryScores, names: list[str]) -> float:
        return float(np.mean([scores[name][dim] for name in names for dim in dims]))

    return {
        "queries": len(known),
        "then": mean(then, known),
        "now": mean(now, known),
        "fresh_queries": len(fresh),
        "fresh": mean(now, fresh) if fresh else None,
    }


def refuses_data(record: Mapping[str, Any], max_drop: float) -> bool:
    """Whether a cycle has found its data at fault, and published none of them."""
    known = (record.get(name) for name in ("known_queries", "anchor_known_queries"))
    return any(problem_of_known("a release", one, max_drop) is not None for one in known)


def problem_of_known(who: str, known: dict[str, Any] | None, max_drop: float) -> str | None:
    """Why the data are refused, where a release loses more on known queries than a share of `max_drop`."""
    if known is None or known["now"] >= (1 - max_drop) * known["then"]:
        return None
    return (
        f"REFUSED: {who} itself reaches {known['now']:.4f} nDCG@10 on {known['queries']} gate queries on which "
        f"it reached {known['then']:.4f}, more than a share of gate.max_drop, {max_drop}, less; look at the new "
        "judgements and embeddings"
    )
