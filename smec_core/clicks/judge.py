"""A click log to judgements: split, weighted, and with what is too rare left out.

Shapes: E entries (query, document, part and rank), J judgements or pairs, Q queries.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smec_core.clicks.log import IDS, ClickLog
from smec_core.clicks.mistakes import ClickRates, fit_rates
from smec_core.clicks.propensity import Propensities
from smec_core.clicks.reading import Read
from smec_core.clicks.rows import shown_time
from smec_core.clicks.rules import ClickRules
from smec_core.clicks.weights import Pairs, propensities_for
from smec_core.data.dataset import hash_share
from smec_core.data.grades import score_figures
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.qrels import score_column
from smec_core.data.seen import SeenDocuments
from smec_core.data.tables import SPLITS
from smec_core.errors import InputError


class Part(NamedTuple):
    """The judgements of one split.

    Attributes:
        judged: by rows of the dataset.
        clicks: that they rest on.
        pairs: that were clicked, before any was left out.
        left_out: clicked pairs that were, by cause.
    """

    judged: Judgements
    clicks: int
    pairs: int
    left_out: dict[str, int]


class Found(NamedTuple):
    """Judgements by split, and how they came about."""

    parts: dict[str, Part]
    propensities: Propensities | None
    told: str
    rates: ClickRates | None
    unknown: dict[str, int]
    ids: tuple[TableIds, TableIds]


def judge(log: ClickLog, read: Read, rules: ClickRules, corpus: EmbeddingTable, queries: EmbeddingTable) -> Found:
    """The judgements that a log gives.

    Raises:
        InputError: too many unknown ids, or train or test has nothing.
    """
    entries = read.entries
    doc_ids = TableIds.read(corpus, entries.doc_ids)
    query_ids = TableIds.read(queries, entries.query_ids)
    query_E = query_ids.rows_of(entries.query_ids)[entries.query_E]
    doc_E = doc_ids.rows_of(entries.doc_ids)[entries.doc_E]
    unknown = {
        "query_id": int(entries.rows_E[query_E < 0].sum()),
        "doc_id": int(entries.rows_E[(query_E >= 0) & (doc_E < 0)].sum()),
    }
    if sum(unknown.values()) > rules.max_unknown * read.rows:
        _refuse_unknown(log, rules, read, unknown, (query_ids, doc_ids))
    part_E = entries.part_E
    if read.split.from_us is None:
        part_E = _parts_of_queries(entries.query_ids, rules)[entries.query_E]
    keep_E = (query_E >= 0) & (doc_E >= 0)
    columns = [part_E, query_E, doc_E, entries.rank_E, entries.clicks_E, entries.shown_E]
    columns = [column[keep_E] for column in columns]
    # sums of floats below come in this order, whatever that of the rows
    order = np.lexsort(columns[3::-1])
    part_E, query_E, doc_E, rank_E, clicks_E, shown_E = (column[order] for column in columns)
    train_E = part_E == 0
    pair_E = _numbered(query_E, doc_E)
    some = [column[train_E] for column in (pair_E, rank_E, clicks_E, shown_E)]
    propensities, told = propensities_for(read, rules, int(rank_E.max(initial=0)), some)
    p_K = None if propensities is None else propensities.p_K
    pairs = [
        Pairs.of(
            p_K,
            "clicked" in read.present,
            rules.max_weight,
            *[column[part_E == number] for column in (query_E, doc_E, rank_E, clicks_E, shown_E)],
        )
        for number in range(len(SPLITS))
    ]
    if p_K is None and rules.min_skips is not None:
        raise InputError(
            f"min_skips: needs to know how likely each rank is looked at, and propensities are {told}; leave it out"
        )
    rates = None
    if rules.min_certainty and pairs[0].looks_J is not None:
        rates = fit_rates(pairs[0].clicks_J, pairs[0].looks_J)
    parts = {name: _part(rules, read, some, rates) for name, some in zip(SPLITS, pairs, strict=True)}
    _check_parts(log, read, rules, parts)
    parts = {name: part for name, part in parts.items() if len(part.judged)}
    return Found(parts, propensities, told, rates, unknown, (doc_ids, query_ids))


def _numbered(query_E: np.ndarray, doc_E: np.ndarray) -> np.ndarray:
    """A number for each pair, whatever the part."""
    return query_E.astype(np.int64) << 32 | doc_E


def _parts_of_queries(query_ids: pa.Array, rules: ClickRules) -> np.ndarray:
    share_Q = np.array([hash_share(f"{rules.seed} {name}", b"judge") for name in query_ids.to_pylist()])
    return np.where(share_Q < rules.test_share, 2, np.where(share_Q < rules.test_share + rules.dev_share, 1, 0))


def _first_unknown(log: ClickLog, ids: tuple[TableIds, TableIds]) -> str | None:
    """Reads the log again for the first row that names an unknown id."""
    for raw in log.batches(IDS):
        for name, known in zip(IDS, ids, strict=True):
            column = pc.cast(raw.columns[name], pa.string())
            # what is null or empty was counted as bad
            is_unknown_N = (known.rows_of(column) < 0) & pc.fill_null(pc.not_equal(column, ""), False).to_numpy(False)
            if is_unknown_N.any():
                row = int(is_unknown_N.argmax())
                value = column[row].as_py()
                return f"{raw.path}: {raw.unit} {raw.row + row}, column {getattr(log.names, name)}: {value!r}"
    return None


def _refuse_unknown(
    log: ClickLog, rules: ClickRules, read: Read, unknown: Mapping[str, int], ids: tuple[TableIds, TableIds]
) -> None:
    place = _first_unknown(log, ids) or log.first
    raise InputError(
        f"{place}: {sum(unknown.values()):,} of the log's {read.rows:,} rows name ids that the data does not hold "
        f"(queries {unknown['query_id']:,}, documents {unknown['doc_id']:,}), more than a share of {rules.max_unknown} "
        "(max_unknown), this the first; is it the log of this data? If so, embed what is missing, or raise max_unknown"
    )


def _part(rules: ClickRules, read: Read, pairs: Pairs, rates: ClickRates | None) -> Part:
    """Judgements of one part of the log: its pairs without those that the rules leave out."""
    if not len(pairs.query_J):
        return Part(Judgements.from_pairs(*[np.empty(0, np.int64)] * 3), 0, 0, {})
    _, of_query_J = np.unique(pairs.query_J, return_inverse=True)
    left_out: dict[str, int] = {}
    keep_J = pairs.clicks_J > 0
    found = int(keep_J.sum())

    def leave_out(cause: str, bad_J: np.ndarray) -> None:
        nonlocal keep_J
        if count := int((keep_J & bad_J).sum()):
            left_out[cause] = count
        keep_J = keep_J & ~bad_J

    leave_out("min_clicks", pairs.clicks_J < rules.min_clicks)
    if "clicked" in read.present:
        leave_out("min_impressions", pairs.shown_J < rules.min_impressions)
    if rates is not None and pairs.looks_J is not None:
        leave_out("min_certainty", rates.certainty(pairs.clicks_J, pairs.looks_J) < rules.min_certainty)
    most_Q = np.zeros(of_query_J.max() + 1)
    np.maximum.at(most_Q, of_query_J[keep_J], pairs.weight_J[keep_J])
    leave_out("min_share", pairs.weight_J < rules.min_share * most_Q[of_query_J])
    clicks = int(pairs.clicks_J[keep_J].sum())
    if rules.min_skips is not None and pairs.looks_J is not None:
        # a query needs a relevant document
        keep_J |= (pairs.clicks_J == 0) & (pairs.looks_J >= rules.min_skips) & (most_Q[of_query_J] > 0)
    judged = Judgements.from_pairs(pairs.query_J[keep_J], pairs.doc_J[keep_J], pairs.weight_J[keep_J])
    return Part(judged, clicks, found, left_out)


def _check_parts(log: ClickLog, read: Read, rules: ClickRules, parts: Mapping[str, Part]) -> None:
    """Refuses a log that leaves nothing to learn from, or nothing to test on where that is wanted.

    Raises:
        InputError: it does.
    """
    wants_test = rules.test_from is not None or rules.test_share > 0
    for name, wanted in (("train", True), ("dev", rules.dev_share > 0), ("test", wants_test)):
        if len(parts[name].judged) or not wanted:
            continue
        span = ""
        if read.split.first_us is not None and read.split.last_us is not None:
            span = f"; the log is from {shown_time(read.split.first_us)} to {shown_time(read.split.last_us)}"
        left_out = "".join(
            f"; {cause} left out {count} of {parts[name].pairs} pairs" for cause, count in parts[name].left_out.items()
        )
        raise InputError(
            f"{log.first}: nothing is left for {name}, split by {read.split.by}{span}{left_out}; choose another "
            "test_from or test_share, or ask for less of what left pairs out"
        )


def table_of(part: Part, ids: tuple[TableIds, TableIds]) -> pa.Table:
    """The judgements of a split as a file of qrels has them: query_id, doc_id, score; whole scores as int32."""
    doc_ids, query_ids = ids
    judged = part.judged
    return pa.table(
        {
            "query_id": pa.array(query_ids.ids_of(judged.query_row_Q), pa.string()).take(pa.array(judged.query_J)),
            "doc_id": pa.array(doc_ids.ids_of(judged.doc_row_J), pa.string()),
            "score": score_column(judged.score_J),
        }
    )


def figures_of(read: Read, found: Found) -> dict[str, Any]:
    """What came of a log, for people and for --json."""
    figures: dict[str, Any] = {
        "rows": read.rows,
        "left_out": {**read.bad, **{f"unknown {name}": count for name, count in found.unknown.items() if count}},
        "clicks": read.clicks,
        "split": {
            "by": read.split.by,
            "first": None if read.split.first_us is None else shown_time(read.split.first_us),
            "last": None if read.split.last_us is None else shown_time(read.split.last_us),
        },
        "propensities": {"source": found.told, "by_rank": _by_rank(found.propensities)},
        "click_rates": None if found.rates is None else found.rates._asdict(),
        "splits": {},
    }
    learnt: Judgements | None = None
    for name, part in found.parts.items():
        judged = part.judged
        positive_J = judged.score_J > 0
        figures["splits"][name] = {
            "clicks": part.clicks,
            "queries": len(judged),
            "pairs": int(positive_J.sum()),
            "not_relevant": int((~positive_J).sum()),
            "pairs_before": part.pairs,
            "left_out": part.left_out,
            "scores": score_figures(judged),
        }
        if learnt is not None:
            seen_Q = SeenDocuments.of(learnt, *found.ids).seen_queries(judged, found.ids[0])
            again_J = np.isin(_keys(judged), _keys(learnt)[learnt.score_J > 0]) & positive_J
            recurring = int((np.bincount(judged.query_J[again_J], minlength=len(judged)) > 0).sum())
            figures["splits"][name] |= {
                "seen": int(seen_Q.sum()),
                "unseen": int((~seen_Q).sum()),
                "recurring": recurring,
            }
        learnt = judged if learnt is None else learnt.merge(judged)
    return figures


def _keys(judged: Judgements) -> np.ndarray:
    return _numbered(judged.query_row_Q[judged.query_J], judged.doc_row_J)


def _by_rank(found: Propensities | None) -> list[float] | None:
    return None if found is None else found.p_K.tolist()
