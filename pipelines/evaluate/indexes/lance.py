"""LanceDB, embedded: a table in a temporary folder, each vector a fixed-size list.

Shapes: Q queries, d dims of a pass, k results.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

from pipelines.evaluate.indexes.store import BATCH_ROWS, Form, NestedVectors, SearchPath, TwoPassIndex
from smec_core.model.quantize import to_bits
from smec_core.temporary import temporary_folder

SCAN_ROWS = 100_000
"""Up to here LanceDB's guide advises against an index; above, an IVF_FLAT index is built with its defaults."""


class Lance(TwoPassIndex):
    """A table of `row`, `vector` and, where there is a second pass, `rescore`, which the client orders by."""

    def __init__(self, path: SearchPath, vectors: NestedVectors, folder: Path) -> None:
        super().__init__(path)
        self._metric: Literal["hamming", "cosine"] = "hamming" if path.first.dtype == "binary" else "cosine"
        schema = pa.schema([("row", pa.int64()), ("vector", _arrow_type(path.first))])
        if path.second is not None:
            schema = schema.append(pa.field("rescore", _arrow_type(path.second)))
        reader = pa.RecordBatchReader.from_batches(schema, _batches(path, vectors, schema))
        self._table = lancedb.connect(folder).create_table("documents", reader)
        self.bytes_per_vector = sum(form.nbytes for form in path.forms)
        if vectors.rows > SCAN_ROWS:
            self._table.create_index("vector", config=IvfFlat(distance_type=self._metric))
            self.bytes_per_vector += path.first.nbytes
        self.index_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def first_pass(self, q_Qd: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """See `SearchIndex`."""
        # asking for the distance, too, which LanceDB otherwise adds with a warning
        columns = ["row", "_distance", *([] if self.path.second is None else ["rescore"])]
        for q_d in to_bits(q_Qd) if self.path.first.dtype == "binary" else q_Qd:
            query: Any = self._table.search(q_d, vector_column_name="vector")
            found = query.distance_type(self._metric).select(columns).limit(k).to_arrow()
            rows, held = found["row"].to_numpy(), None
            if self.path.second is not None:
                numbers = found["rescore"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                held = numbers.reshape(len(found), -1)
            yield rows, held


def _arrow_type(form: Form) -> pa.DataType:
    if form.dtype == "binary":
        return pa.list_(pa.uint8(), form.nbytes)
    return pa.list_(pa.from_numpy_dtype(np.dtype(form.dtype)), form.dim)


def _batches(path: SearchPath, vectors: NestedVectors, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, vectors.rows, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, vectors.rows)
        columns: list[pa.Array] = [pa.array(np.arange(start, stop))]
        for form in path.forms:
            held = vectors.held_as(form, start, stop)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(held.reshape(-1)), held.shape[1]))
        yield pa.record_batch(columns, schema=schema)


@contextmanager
def build(path: SearchPath, vectors: NestedVectors, threads: int) -> Iterator[Lance]:
    """Writes the table into a temporary folder. LanceDB takes threads as it finds cores."""
    with temporary_folder() as folder:
        yield Lance(path, vectors, folder)
