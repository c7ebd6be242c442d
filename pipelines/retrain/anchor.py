"""The anchor: the best release so far, with which each challenger is compared beside the champion.

Each champion is compared with the one before only, so losses that are small enough for the gate would add up, and
judgements that become a little worse each time would never be noticed. The anchor stays until another release is better
by the same measure: today's gate queries, and those that the anchor itself was promoted by.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.console import say, warn
from pipelines.retrain.drift import by_query, known_queries, problem_of_known
from pipelines.retrain.ledger import Ledger, QueryScores, Release
from pipelines.retrain.settings import RetrainSettings
from smec_core.data.dataset import Dataset
from smec_core.errors import InputError
from smec_core.evaluation import gate
from smec_core.evaluation.corpus_search import Encode, Sides
from smec_core.model.model import Model


class Released(NamedTuple):
    """A release and its model."""

    release: Release
    model: Model


def find_anchor(ledger: Ledger, settings: RetrainSettings) -> Release | None:
    """The release of the anchor; None before the first release.

    Raises:
        InputError: `gate.anchor` names no release.
    """
    releases = ledger.releases()
    anchor, since = releases.anchored, settings.gate.anchor
    if since is None:
        return anchor
    # also one that is kept no more, or whose vectors were made again under another name
    decided = [ledger.cycle(number)["release"] for number in ledger.numbers()]
    all_releases = [*(Release(**one) for one in decided if one is not None), *releases.releases]
    here = [one for one in all_releases if (one.output, one.version) == (settings.publish.place, since)]
    if anchor is None or not here:
        kept = ", ".join(one.version for one in releases.releases if one.output == settings.publish.place)
        raise InputError(
            f"gate.anchor: no release has version {since}; those of {settings.name} that are kept in "
            f"{settings.publish.place}: {kept or 'none'}; {'name one of them, or ' if kept else ''}remove gate.anchor"
        )
    first = here[-1].trained_in
    if anchor.trained_in >= first:
        return anchor
    later = [one for one in releases.releases if one.trained_in == first]
    return later[-1] if later else releases.champion


def beats(ledger: Ledger, anchor: Release, scores: gate.Scores, reached: QueryScores) -> bool:
    """Whether a challenger that has passed the gate is the anchor from now on.

    Args:
        ledger: of the series.
        anchor: until now.
        scores: nDCG@10 of each gate query, by system and dim.
        reached: that of the challenger, by the query's id.
    """
    challenger, other = scores[gate.CHALLENGER], scores.get(gate.ANCHOR, scores[gate.CHAMPION])
    # at every dim: one that always loses a little would be carried along by the others
    loses_nowhere = all(challenger[dim].mean() >= other[dim].mean() for dim in challenger)
    # where the judgements have become worse, no model reaches on them what the anchor once has
    record = known_queries(ledger, anchor, reached)
    return loses_nowhere and (record is None or record["now"] >= record["then"])


def gate_sides(
    baselines: Mapping[str, Encode],
    challenger: Model,
    champion: Released | None,
    anchor: Released | None,
    is_compatible: bool,
) -> dict[str, Sides]:
    """What the gate compares: baselines, challenger, champion and anchor, where that is not the champion.

    Where the challenger is to be compatible, it is compared on the documents of the champion, too.
    """
    systems: dict[str, Encode] = {**baselines, gate.CHALLENGER: challenger.encode}
    if champion is not None:
        systems[gate.CHAMPION] = champion.model.encode
    if anchor is not None and anchor is not champion:
        systems[gate.ANCHOR] = anchor.model.encode
    sides = {name: Sides.same(encode) for name, encode in systems.items()}
    if champion is not None and is_compatible:
        sides[gate.OLD_DOCUMENTS] = Sides(queries=challenger.encode, documents=champion.model.encode)
    return sides


class Known(NamedTuple):
    """What earlier models reach on judgements that are known from when they were promoted.

    Attributes:
        record: figures for the cycle's record.
        problem: why the data are refused, if so.
    """

    record: dict[str, Any]
    problem: str | None


def look_at_known(
    ledger: Ledger,
    dataset: Dataset,
    scores: gate.Scores,
    champion: Released | None,
    anchor: Released | None,
    max_drop: float,
) -> Known:
    """Compares what champion and anchor reach now with what they reached."""
    if champion is None or anchor is None:
        return Known({"known_queries": None}, None)
    known = known_queries(ledger, champion.release, by_query(dataset, scores[gate.CHAMPION]))
    if known is None:
        warn("no gate query is one that the champion was promoted by: whether judgements still fit is not known")
    elif known["fresh_queries"]:
        fresh = f"{known['fresh']:.4f} nDCG@10 on {known['fresh_queries']} fresh gate queries"
        say(f"the champion reaches {fresh}")
    record = {"known_queries": known}
    problem = problem_of_known("the champion", known, max_drop)
    if problem or gate.ANCHOR not in scores:
        return Known(record, problem)
    known = known_queries(ledger, anchor.release, by_query(dataset, scores[gate.ANCHOR]))
    problem = problem_of_known(f"the anchor, {anchor.release.version},", known, max_drop)
    cure = f"; if they are right, set gate.anchor to {champion.release.version}"
    return Known({**record, "anchor_known_queries": known}, problem and f"{problem}{cure}")
