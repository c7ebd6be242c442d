"""The ids of a table, read once and not kept: which rows judgements name, and whether each id is there once.

Shapes: M rows of the table, W ids that are looked for, U rows that have one of them.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smec_core.data.fingerprint import are_in, hash_ids
from smec_core.data.parquet import EmbeddingTable
from smec_core.errors import InputError

MOST_HELD = 1 << 22
"""Hashes of so many ids are held in memory; more lie in files, by range, until they have been compared."""
_RANGES = 64
_RANGE_BITS = np.uint64(58)


class TableIds(NamedTuple):
    """What is known of the ids of a table.

    Attributes:
        row_U: rows that have an id which was looked for, ascending.
        id_U: their ids.
        digest: hash (hex) of all ids, in their order.
        hash_M: hashes of all ids; None where they are more than MOST_HELD.
    """

    row_U: np.ndarray
    id_U: pa.Array
    digest: str
    hash_M: np.ndarray | None

    @classmethod
    def read(cls, table: EmbeddingTable, wanted_W: pa.Array) -> "TableIds":
        """Reads the column of ids.

        Args:
            table: the table.
            wanted_W: ids to look for.

        Raises:
            InputError: a null, an empty id, or an id that is there twice.
        """
        digest, wanted_hashes = hashlib.sha256(), np.unique(hash_ids(wanted_W))
        rows, found, held = [np.empty(0, np.int64)], [pa.array([], pa.string())], list[np.ndarray]()
        with _Ranges() as ranges:
            for first, ids in table.id_chunks():
                hash_N = hash_ids(ids)
                digest.update(hash_N.tobytes())
                # by hash first: to look up strings, all that are wanted would be hashed for every chunk
                maybe = np.flatnonzero(are_in(hash_N, wanted_hashes))
                some = ids.take(pa.array(maybe))
                is_wanted = pc.is_in(some, value_set=wanted_W) if len(maybe) else pa.array([], pa.bool_())
                rows.append(first + maybe[is_wanted.to_numpy(zero_copy_only=False)])
                found.append(some.filter(is_wanted))
                if table.rows <= MOST_HELD:
                    held.append(hash_N)
                else:
                    ranges.add(hash_N)
            repeated = _repeated(np.concatenate(held)) if held else ranges.repeated()
        if len(repeated):
            _refuse_repeated(table, repeated)
        hash_M = np.concatenate(held) if held else None
        return cls(np.concatenate(rows), pa.concat_arrays(found), digest.hexdigest(), hash_M)

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Ids of rows that have one which was looked for."""
        place = np.searchsorted(self.row_U, rows)
        ids: list[str] = self.id_U.take(pa.array(place)).to_pylist()
        assert np.array_equal(self.row_U[place], rows)
        return ids

    def rows_of(self, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Rows of ids that were looked for; -1 of those that the table does not have."""
        place = pc.index_in(ids, value_set=self.id_U)
        place_N = pc.fill_null(place, -1).to_numpy()
        # a place of -1 is the last
        rows: np.ndarray = np.append(self.row_U, -1)[place_N]
        return rows


class _Ranges:
    """Hashes in files, by range."""

    def __enter__(self) -> "_Ranges":
        self._stack = ExitStack()
        self._files: list[IO[bytes]] = []
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def add(self, hash_N: np.ndarray) -> None:
        """Takes some hashes."""
        if not self._files:
            files = (tempfile.TemporaryFile() for _ in range(_RANGES))  # noqa: SIM115
            self._files = [self._stack.enter_context(file) for file in files]
        hash_N = np.sort(hash_N)
        edges = np.searchsorted(hash_N >> _RANGE_BITS, np.arange(_RANGES + 1))
        for file, low, high in zip(self._files, edges[:-1], edges[1:], strict=True):
            file.write(hash_N[low:high].tobytes())

    def repeated(self) -> np.ndarray:
        """Hashes that are there twice."""
        found = [np.empty(0, np.uint64)]
        for file in self._files:
            file.seek(0)
            found.append(_repeated(np.frombuffer(file.read(), np.uint64)))
        return np.concatenate(found)


def _repeated(hash_N: np.ndarray) -> np.ndarray:
    hash_N = np.sort(hash_N)
    repeated: np.ndarray = np.unique(hash_N[1:][hash_N[1:] == hash_N[:-1]])
    return repeated


def _refuse_repeated(table: EmbeddingTable, repeated: np.ndarray) -> None:
    """Raises where one of the ids with such hashes is there twice; two ids may share a hash."""
    first: dict[str, int] = {}
    for row, name in _with_hashes(table, repeated):
        if name in first:
            raise InputError(
                f"{table.locate(row)}, column {table.names.id}: {name!r} was seen before in "
                f"{table.locate(first[name])}; remove one"
            )
        first[name] = row


def _with_hashes(table: EmbeddingTable, hashes: np.ndarray) -> Iterator[tuple[int, str]]:
    for start, ids in table.id_chunks():
        for place in np.flatnonzero(np.isin(hash_ids(ids), hashes)):
            yield start + int(place), ids[int(place)].as_py()
