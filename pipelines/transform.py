"""Compression as a step of your own Ray Data pipelines.

Shapes: N rows, D input dims, d dims kept.
"""

import functools
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import torch

from smec_core.config import VectorType
from smec_core.data.columns import given_columns, ids_of, judge_schema
from smec_core.data.forms import names_of
from smec_core.data.parquet import READ_ROWS, vectors_of
from smec_core.errors import InputError, RowError
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.model.vector_types import check_columns, nested_columns, vector_fields

BATCH = "batch"


class Compress:
    """Compresses the embeddings of Arrow tables: what `smec compress` does, for `map_batches` of Ray Data.

    Takes a table of N rows with an id and an embedding of D numbers, and gives it back with the nested unit vectors of
    d numbers in the place and under the name of the embeddings, as FixedSizeList<d>. With `dtype="binary"` that column
    is the signs as bits, d / 8 bytes rounded up, and the int8 vectors follow it as the column `rescore`. All other
    columns stay as they are. It is checked and encoded as by `smec compress`, to the same bits where the batches are
    the same (8192 rows of one file); other batches may round the last bit of a number otherwise.

    It pickles as its arguments. The model is loaded at the first batch, once in each process; one that may be replaced
    meanwhile is best given itself, for all processes to have the same.

    Example:
        >>> vectors = ray.data.read_parquet("data/products/corpus")
        >>> vectors = vectors.map_batches(Compress("models/products", dim=96, dtype="int8"), batch_format="pyarrow")
        >>> vectors.schema()                            # embedding: FixedSizeList<int8>[96]

        On a pool of actors:

        >>> vectors.map_batches(Compress, fn_constructor_args=("models/products", 96), concurrency=2,
        ...                     batch_format="pyarrow")
    """

    def __init__(
        self,
        model: str | Path | Model,
        dim: int,
        dtype: VectorType = "float32",
        columns: Mapping[str, str] | None = None,
        device: str = "cpu",
    ) -> None:
        """Loads nothing yet.

        Args:
            model: a model, or its folder or URI, which all nodes must reach.
            dim: how many dims to keep, d; one of the model's dims keeps its measured quality.
            dtype: number type of the vectors: float32, float16, int8 or binary.
            columns: what id and embedding are called, where they have other names: {"id": "sku"}.
            device: of torch, to multiply on; "cuda" where `map_batches` has `num_gpus`.

        Raises:
            InputError: there is no such dtype or device, `dim` is no whole number, or `columns` names others than id
                and embedding.
        """
        if not isinstance(dim, int | np.integer):
            raise InputError(f"dim is {dim!r}; it must be a whole number")
        if dtype not in get_args(VectorType):
            raise InputError(f"dtype is {dtype!r}; it must be {', '.join(get_args(VectorType))}")
        if unknown := set(given_columns(columns)) - {"id", "embedding"}:
            raise InputError(f"columns: names {min(unknown)!r}; only id and embedding are read")
        try:
            # whether there is such a device is for the machine to say that multiplies on it
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"device is {device!r}; give cpu or cuda") from error
        self._model, self._dim, self._dtype, self._device = model, dim, dtype, device
        self._names = names_of(columns)
        # a later object may find another model in the same folder
        self._key = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Compresses the rows of a table.

        Raises:
            InputError: a column is missing or of another type, a row has no sound id and vector (RowError, with its
                number in the batch and its id), or the model does not fit the vectors or gives no such dim or dtype.
            SmecError: the model gives NaN or infinity.
        """
        if not isinstance(batch, pa.Table):
            raise InputError(f'{BATCH}: is a {type(batch).__name__}, not an Arrow table; say batch_format="pyarrow"')
        names = self._names
        judge_schema(BATCH, batch.schema, names.of_vectors, 'columns={"%s": NAME}')
        check_columns(batch.column_names, self._dtype, BATCH)
        model = self._model if isinstance(self._model, Model) else _load_once(str(self._model), self._key)
        fields = vector_fields(self._dim, self._dtype)
        chunks: dict[str, list[pa.Array]] = {field.name: [] for field in fields}
        row = 0
        if not len(batch):
            # a schema may be taken from it
            nested_columns(np.empty((0, model.input_dim), np.float32), [], (self._dim,), self._dtype, model, BATCH)
        # in one piece first: batches of whole files are then multiplied as `smec compress` does
        for rows in batch.select([names.id, names.embedding]).combine_chunks().to_batches(READ_ROWS):
            for name, column in self._encode(model, rows, row).items():
                chunks[name].append(column)
            row += len(rows)
        at = batch.column_names.index(names.embedding)
        result = batch.remove_column(at).replace_schema_metadata(None)
        for place, field in enumerate(fields, at):
            name = names.embedding if field.name == "embedding" else field.name
            result = result.add_column(place, field.with_name(name), pa.chunked_array(chunks[field.name], field.type))
        return result

    def _encode(self, model: Model, rows: pa.RecordBatch, row: int) -> dict[str, pa.Array]:
        """The new columns of some rows, the first of which is a row of the batch."""
        names = self._names
        try:
            ids = ids_of(rows[names.id], BATCH, names.id, row)
            vectors_ND = vectors_of(rows[names.embedding], model.input_dim, BATCH, row, names.embedding)
        except RowError as error:
            place, found, column, why = error.args
            which = rows[names.id][found - row].as_py()
            raise RowError(place, found, column, f"{why} (id {which})") from None
        return nested_columns(vectors_ND, ids, (self._dim,), self._dtype, model, BATCH, device=self._device)[self._dim]


@functools.lru_cache(maxsize=8)
def _load_once(folder: str, key: str) -> Model:
    """The model of a folder, loaded once in a process for each key."""
    return load(folder)
