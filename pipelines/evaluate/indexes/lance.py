"""LanceDB, embedded: a table in a temporary folder, each vector a fixed-size list.

Shapes: Q queries, N documents, d dims of a pass, k results, S shortlist.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

from pipelines.evaluate.indexes.store import (
    BATCH_ROWS,
    Form,
    NestedVectors,
    SearchPath,
    best_first,
    padded,
    unit_prefix,
)
from smec_core.model.quantize import to_bits

SCAN_ROWS = 100_000
"""Up to here LanceDB's guide advises against an index; above, an IVF_FLAT index is built with its defaults."""


class Lance:
    """A table of `row`, `vector` and, where there is a second pass, `rescore`, which the client orders by."""

    cost = None

    def __init__(self, path: SearchPath, vectors: NestedVectors, folder: Path) -> None:
        self._path = path
        self._metric: Literal["hamming", "cosine"] = "hamming" if path.first.dtype == "binary" else "cosine"
        schema = pa.schema([("row", pa.int64()), ("vector", _arrow_type(path.first))])
        if path.second is not None:
            schema = schema.append(pa.field("rescore", _arrow_type(path.second)))
        reader = pa.RecordBatchReader.from_batches(schema, _batches(path, vectors, schema))
        self._table = lancedb.connect(folder).create_table("documents", reader)
        copies = 1
        if vectors.rows > SCAN_ROWS:
            self._table.create_index("vector", config=IvfFlat(distance_type=self._metric))
            copies = 2
        second = 0 if path.second is None else path.second.nbytes
        self.bytes_per_vector = copies * path.first.nbytes + second
        self.index_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """See `SearchIndex`."""
        q_Qd = unit_prefix(q_QD, self._path.first.dim)
        if self._path.first.dtype == "binary":
            q_Qd = to_bits(q_Qd)
        if self._path.second is None:
            return padded([self._nearest(q_d, k)["row"].to_numpy() for q_d in q_Qd], k)
        return padded(
            [
                self._rescored(self._nearest(first_d, self._path.shortlist), second_d)
                for first_d, second_d in zip(q_Qd, unit_prefix(q_QD, self._path.second.dim), strict=True)
            ],
            k,
        )

    def _nearest(self, q_d: np.ndarray, k: int) -> pa.Table:
        columns = ["row"] if self._path.second is None else ["row", "rescore"]
        query: Any = self._table.search(q_d, vector_column_name="vector")
        # asking for the distance, too, which it otherwise adds with a warning
        return query.distance_type(self._metric).select([*columns, "_distance"]).limit(k).to_arrow()

    def _rescored(self, found: pa.Table, q_d: np.ndarray) -> np.ndarray:
        held = found["rescore"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        order: np.ndarray = found["row"].to_numpy()[best_first(q_d, held.reshape(len(found), -1))]
        return order


def _arrow_type(form: Form) -> pa.DataType:
    if form.dtype == "binary":
        return pa.list_(pa.uint8(), form.nbytes)
    return pa.list_(pa.from_numpy_dtype(np.dtype(form.dtype)), form.dim)


def _batches(path: SearchPath, vectors: NestedVectors, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, vectors.rows, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, vectors.rows)
        columns: list[pa.Array] = [pa.array(np.arange(start, stop))]
        for form in (path.first, path.second):
            if form is not None:
                held = vectors.held_as(form, start, stop)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(held.reshape(-1)), held.shape[1]))
        yield pa.record_batch(columns, schema=schema)


@contextmanager
def build(path: SearchPath, vectors: NestedVectors, threads: int) -> Iterator[Lance]:
    """Writes the table into a temporary folder. LanceDB takes threads as it finds cores."""
    with tempfile.TemporaryDirectory(prefix="smec-lance-") as folder:
        yield Lance(path, vectors, Path(folder))
