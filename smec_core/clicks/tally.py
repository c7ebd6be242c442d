"""Clicks added up by query, document and rank: memory grows with distinct pairs and ranks, not with the rows of a log.

Shapes: N rows of a batch, E entries, each a query, document, part and rank that is there.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from smec_core.clicks.rows import Rows

MOST_RANK = 100
"""Documents that were shown further down count as shown there."""
HELD_ROWS = 1 << 21
"""Rows that are held before they are added up."""
_KEYS = ["query", "doc", "slot"]
_SUMS = ["clicks", "shown", "rows"]
_SLOTS = MOST_RANK + 1


class Entries(NamedTuple):
    """What a log says, added up.

    Attributes:
        query_ids, doc_ids: those in the log, each once.
        query_E, doc_E: places among them.
        part_E: of the log, as `Tally.add` was told.
        rank_E: where the document was shown; 0 where the log does not say.
        clicks_E, shown_E, rows_E: sums of counts of clicks and of all rows, and the number of rows.
    """

    query_ids: pa.Array
    doc_ids: pa.Array
    query_E: np.ndarray
    doc_E: np.ndarray
    part_E: np.ndarray
    rank_E: np.ndarray
    clicks_E: np.ndarray
    shown_E: np.ndarray
    rows_E: np.ndarray


class Tally:
    """Adds up rows. What comes of it does not depend on their order but for the order of entries and ids."""

    def __init__(self) -> None:
        self._codes: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._added = _empty()
        self._held: list[pa.Table] = []
        self._held_rows = 0

    def add(self, rows: Rows, part_N: np.ndarray) -> None:
        """Takes some rows; `part_N` says which part of the log each is in."""
        clicks_N = rows.count_N if rows.clicked_N is None else rows.count_N * rows.clicked_N
        rank_N = 0 if rows.rank_N is None else np.minimum(rows.rank_N, MOST_RANK)
        query_N, doc_N = (
            _coded(ids, codes) for ids, codes in zip((rows.query_id, rows.doc_id), self._codes, strict=True)
        )
        columns = [query_N, doc_N, (part_N * _SLOTS + rank_N).astype(np.int16), clicks_N, rows.count_N]
        table = pa.table([*columns, np.ones(len(query_N), np.int64)], names=_KEYS + _SUMS)
        self._held.append(_summed(table))
        self._held_rows += len(self._held[-1])
        # of what is held each row is added up again log(rows) times at most
        if self._held_rows > max(HELD_ROWS, len(self._added)):
            self._add_up()

    def entries(self) -> Entries:
        """All that was added."""
        self._add_up()
        query_ids, doc_ids = (pa.array(codes, pa.string()) for codes in self._codes)
        query_E, doc_E, slot_E, *sums = (column.to_numpy() for column in self._added.columns)
        return Entries(query_ids, doc_ids, query_E, doc_E, *np.divmod(slot_E, _SLOTS), *sums)

    def _add_up(self) -> None:
        self._added = _summed(pa.concat_tables([self._added, *self._held]))
        self._held, self._held_rows = [], 0


def _empty() -> pa.Table:
    kinds = [pa.int32(), pa.int32(), pa.int16(), *[pa.int64()] * len(_SUMS)]
    return pa.schema(list(zip(_KEYS + _SUMS, kinds, strict=True))).empty_table()


def _summed(table: pa.Table) -> pa.Table:
    sums = table.group_by(_KEYS).aggregate([(name, "sum") for name in _SUMS])
    return sums.select([*_KEYS, *(f"{name}_sum" for name in _SUMS)]).rename_columns(_KEYS + _SUMS)


def _coded(ids: pa.Array, codes: dict[str, int]) -> np.ndarray:
    """Numbers (N) of ids, new ones in the order in which they come."""
    found = ids.dictionary_encode()
    code_U = np.array([codes.setdefault(name, len(codes)) for name in found.dictionary.to_pylist()], np.int32)
    return code_U[found.indices.to_numpy()]
