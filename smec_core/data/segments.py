"""Segments of judged queries: which language, tenant or category a column of the queries table says that each is of.

Shapes: Q judged queries, S segments, N rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from smec_core.data.dataset import Dataset
from smec_core.data.memory import MemoryTable
from smec_core.data.tables import find_values
from smec_core.data.uri import open_filesystem, public_uri, without_slash
from smec_core.errors import InputError
from smec_core.shown import safe_line

NULL = "(null)"
"""What the segment of queries without a value is called; in JSON it is null."""
_LONGEST_NAME = 60


class Segments(NamedTuple):
    """The queries of a split by a column.

    Attributes:
        column: its name.
        values: (S) of the column, None for null; those with most queries first.
        rows: (S) places among the judged queries, ascending, of those that have the value.
    """

    column: str
    values: list[str | None]
    rows: list[np.ndarray]

    @classmethod
    def of(cls, dataset: Dataset, split: str | None, column: str) -> "Segments":
        """Reads a column of text, whole numbers or booleans.

        Args:
            dataset: the data.
            split: whose queries with a relevant document are meant.
            column: of the queries table.

        Raises:
            InputError: there are no such judgements, or the column is missing or of another type.
        """
        return cls.of_splits(dataset, [split], column)[0]

    @classmethod
    def of_splits(cls, dataset: Dataset, splits: Sequence[str | None], column: str) -> list["Segments"]:
        """The same of some splits; the column is read once, and judged also where there are no splits.

        Raises:
            InputError: as `of`.
        """
        if any(split not in dataset.splits for split in splits):
            raise InputError(f"{public_uri(dataset.uri)}: {column} divides judged queries, and there are none")
        rows = [dataset.splits[split].with_positives().query_row_Q for split in splits if split is not None]
        chunks = [[pa.array([], pa.string())] for _ in rows]
        for first, label_N in _labels(dataset, column):
            for row_Q, found in zip(rows, chunks, strict=True):
                low, high = np.searchsorted(row_Q, [first, first + len(label_N)])
                found.append(label_N.take(pa.array(row_Q[low:high] - first)))
        return [cls._of_labels(column, pa.concat_arrays(found)) for found in chunks]

    @classmethod
    def _of_labels(cls, column: str, label_Q: pa.Array) -> "Segments":
        found = label_Q.dictionary_encode(null_encoding="encode")
        place_Q, values = found.indices.to_numpy(), found.dictionary.to_pylist()
        ends = np.cumsum(np.bincount(place_Q, minlength=len(values)))
        rows = np.split(np.argsort(place_Q, kind="stable"), ends[:-1])
        order = sorted(range(len(values)), key=lambda one: (-len(rows[one]), values[one] is None, values[one]))
        return cls(column, [values[one] for one in order], [rows[one] for one in order])

    @property
    def digest(self) -> str:
        """Hash (hex) that changes where a query changes its segment, or another one is judged."""
        told = hashlib.sha256(repr((self.column, self.values)).encode())
        for row_N in self.rows:
            told.update(len(row_N).to_bytes(8, "big") + row_N.astype("<i8").tobytes())
        return told.hexdigest()


def segment_name(value: str | None) -> str:
    """What people call a segment, as it may be shown; a text that could be taken for another is quoted."""
    if value is None:
        return NULL
    return safe_line(value if value.strip() == value and value not in ("", NULL) else repr(value), _LONGEST_NAME)


def _labels(dataset: Dataset, column: str) -> Iterator[tuple[int, pa.Array]]:
    table = dataset.queries
    if not isinstance(table, MemoryTable):
        # a table may be partitioned by it, so that its files do not hold it
        filesystem, root = open_filesystem(without_slash(dataset.uri))
        table = table.with_values(find_values(filesystem, f"{root.rstrip('/')}/queries", table.files[0].path))
    return table.labels(column)
