"""Embedding tables in Parquet: opened by footer, read in validated blocks, written as fixed-size lists.

Shapes: N rows, D embedding dims.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from smec_core.errors import InputError, one_line
from smec_core.uri import open_filesystem, public_uri

ROW_GROUP_ROWS = 65_536
READ_BUFFER_BYTES = 8 << 20


class ParquetPart(NamedTuple):
    """One file of a table; `start` is the global row of its first row."""

    path: str
    rows: int
    start: int


class Block(NamedTuple):
    """Consecutive rows of a table: `row` is the global row of the first, `vectors_ND` is float32 and not normalised."""

    row: int
    ids: pa.Array
    vectors_ND: np.ndarray
    table: pa.Table


def find_parquet(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Parquet files of a folder (`path`) or the one file (`path` or `path`.parquet), sorted; empty for none."""
    infos = filesystem.get_file_info([path, f"{path}.parquet"])
    if infos[0].type == pafs.FileType.Directory:
        found = filesystem.get_file_info(pafs.FileSelector(path))
        files = (info for info in found if info.type == pafs.FileType.File and info.base_name.endswith(".parquet"))
        return sorted(info.path for info in files if not info.base_name.startswith((".", "_")))
    return [info.path for info in infos if info.type == pafs.FileType.File][:1]


class EmbeddingTable:
    """The rows (id, embedding) of one folder of Parquet files or of one file, in (sorted file, row) order."""

    def __init__(self, filesystem: pafs.FileSystem, files: list[ParquetPart], dim: int) -> None:
        self.filesystem = filesystem
        self.files = files
        self.dim = dim
        self.rows = sum(part.rows for part in files)

    @classmethod
    def open(cls, uri: str) -> "EmbeddingTable":
        """Reads footers only, and the first row for the dim.

        Raises:
            InputError: nothing there, unreadable, empty, or a missing or wrongly typed column.
        """
        filesystem, path = open_filesystem(uri)
        paths = find_parquet(filesystem, path)
        if not paths:
            shown = public_uri(uri)
            raise InputError(f"{shown}: no Parquet file there; expected {shown}.parquet or {shown}/*.parquet")
        parts: list[ParquetPart] = []
        dims: dict[str, int] = {}
        start = 0
        for file in paths:
            with _open_parquet(filesystem, file) as parquet:
                _check_schema(file, parquet.schema_arrow)
                rows = parquet.metadata.num_rows
                if rows:
                    first = next(_read_batches(parquet, file, 1, ["embedding"], _row_groups(parquet, 0, 1)[0]))[
                        "embedding"
                    ]
                    dims[file] = int(_row_dims(first)[0])
                    if not first[0].is_valid or not dims[file]:
                        raise InputError(
                            f"{file}: row 0, column embedding: is null or has 0 dims; every row needs a vector"
                        )
            parts.append(ParquetPart(file, rows, start))
            start += rows
        if not dims:
            raise InputError(f"{public_uri(uri)}: holds no rows")
        dim = next(iter(dims.values()))
        for file, other in dims.items():
            if other != dim:
                raise InputError(f"{file}: row 0, column embedding: {other} dims, but {next(iter(dims))} has {dim}")
        return cls(filesystem, parts, dim)

    def ids(self) -> pa.ChunkedArray:
        """All ids in global row order.

        Raises:
            InputError: a null or a repeated id.
        """
        chunks = []
        for part in self.files:
            with _open_parquet(self.filesystem, part.path) as parquet:
                try:
                    ids = pc.cast(parquet.read(columns=["id"])["id"], pa.string())
                except (pa.ArrowException, OSError) as error:
                    raise InputError(f"{part.path}: column id cannot be read ({one_line(error)})") from error
            if ids.null_count:
                row = ids.is_null().index(True).as_py()
                raise InputError(f"{part.path}: row {row}, column id: is null; every row needs an id")
            chunks.extend(ids.chunks)
        ids = pa.chunked_array(chunks, pa.string())
        if pc.count_distinct(ids).as_py() < len(ids):
            self._raise_repeated_id(ids)
        return ids

    def _raise_repeated_id(self, ids: pa.ChunkedArray) -> None:
        first: dict[str, int] = {}
        for row, name in enumerate(ids.to_pylist()):
            if name in first:
                raise InputError(
                    f"{self.locate(row)}, column id: {name!r} was seen before in {self.locate(first[name])}; remove one"
                )
            first[name] = row

    def locate(self, row: int) -> str:
        """Names the file and the row in it of a global row."""
        part = next(part for part in self.files if part.start <= row < part.start + part.rows)
        return f"{part.path}: row {row - part.start}"

    def blocks(
        self, start: int = 0, stop: int | None = None, batch_rows: int = 8192, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        """Rows `start` to `stop` in global order, read a batch at a time; only the row groups that hold them are read.

        Raises:
            InputError: null, NaN or infinite values, a zero vector, or a differing dim, with file and row.
        """
        stop = self.rows if stop is None else stop
        wanted = list(dict.fromkeys(["id", "embedding", *columns]))
        for part in self.files:
            if part.start + part.rows <= start or part.start >= stop:
                continue
            with _open_parquet(self.filesystem, part.path) as parquet:
                groups, row = _row_groups(parquet, start - part.start, stop - part.start)
                for batch in _read_batches(parquet, part.path, batch_rows, wanted, groups, row):
                    low, high = max(start - part.start - row, 0), min(stop - part.start - row, len(batch))
                    if low < high:
                        piece = batch.slice(low, high - low)
                        vectors_ND = vectors_of(piece["embedding"], self.dim, part.path, row + low)
                        ids = pc.cast(piece["id"], pa.string())
                        yield Block(part.start + row + low, ids, vectors_ND, pa.Table.from_batches([piece]))
                    row += len(batch)


def vectors_of(column: pa.Array, dim: int, file: str, row: int) -> np.ndarray:
    """Validated float32 vectors of an embedding column, shape (N, `dim`); `row` is the file's row of the first."""

    def refuse(bad_N: np.ndarray, why: str) -> None:
        if bad_N.any():
            raise InputError(f"{file}: row {row + int(bad_N.argmax())}, column embedding: {why}")

    refuse(column.is_null().to_numpy(zero_copy_only=False), "is null; every row needs a vector")
    dims_N = _row_dims(column)
    refuse(dims_N != dim, f"has {dims_N[(dims_N != dim).argmax()] if len(dims_N) else 0} dims, but the table has {dim}")
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    flat = column.flatten()
    if flat.null_count:
        refuse(flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, dim).any(1), "holds a null value")
    vectors_ND = flat.to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float32, copy=False)
    norms_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    if not np.isfinite(norms_N).all():
        refuse(~np.isfinite(vectors_ND).all(1), "holds NaN or infinity; mend or remove the row")
        refuse(~np.isfinite(norms_N), "has a norm too large for float32; scale the vectors down")
    refuse(norms_N == 0, "is a zero vector, which has no direction; remove the row")
    return vectors_ND


def unit_rows(vectors_ND: np.ndarray) -> np.ndarray:
    """The same directions (N, D) at norm 1; rows are not zero."""
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def embedding_column(vectors_ND: np.ndarray) -> pa.FixedSizeListArray:
    """Packs vectors (N, D) as FixedSizeList<D> of their own dtype."""
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])


def write_embeddings(
    path: str,
    ids: Sequence[str] | pa.Array,
    vectors_ND: np.ndarray,
    filesystem: pafs.FileSystem | None = None,
    extra: dict[str, pa.Array] | None = None,
) -> None:
    """Writes one Parquet file (id, embedding, extra columns), without dictionary encoding of the embedding."""
    columns = {"id": pa.array(ids, pa.string()), "embedding": embedding_column(vectors_ND), **(extra or {})}
    pq.write_table(pa.table(columns), path, filesystem=filesystem, use_dictionary=False, row_group_size=ROW_GROUP_ROWS)


def _open_parquet(filesystem: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        # pre-buffering would keep all that was read of a file in memory until it is closed
        return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=False, buffer_size=READ_BUFFER_BYTES)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def _read_batches(
    parquet: pq.ParquetFile, path: str, batch_rows: int, columns: list[str], groups: list[int], row: int = 0
) -> Iterator[pa.RecordBatch]:
    """Batches of some row groups; `row` is the file's row of the first."""
    batches = parquet.iter_batches(batch_rows, row_groups=groups, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            # how pyarrow meets a null in a FixedSizeList column
            null = re.search(r"Expected all lists to be of size=\d+ but index (\d+) had size=0", str(error))
            if null:
                place = f"row {row + int(null[1]) - 1}, column embedding"
                raise InputError(f"{path}: {place}: is null; every row needs a vector") from error
            raise InputError(f"{path}: rows from {row} on cannot be read ({one_line(error)})") from error
        if batch is None:
            return
        yield batch
        row += len(batch)


def _check_schema(file: str, schema: pa.Schema) -> None:
    for name in ("id", "embedding"):
        if name not in schema.names:
            raise InputError(f"{file}: column {name} is missing; it holds {', '.join(schema.names) or 'no columns'}")
    if not _is_string(schema.field("id").type):
        raise InputError(f"{file}: column id is {schema.field('id').type}; it must be string")
    kind = schema.field("embedding").type
    storage = kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind
    is_list = pa.types.is_fixed_size_list(storage) or pa.types.is_list(storage) or pa.types.is_large_list(storage)
    if not is_list or not pa.types.is_floating(storage.value_type):
        raise InputError(f"{file}: column embedding is {kind}; it must be a list of float16 or float32")


def _is_string(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))
    )


def _row_dims(column: pa.Array) -> np.ndarray:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size)
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def _row_groups(parquet: pq.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """Row groups that hold rows `start` to `stop` of a file, and the file's row of the first of them."""
    groups: list[int] = []
    first = row = 0
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row < stop and row + rows > start:
            if not groups:
                first = row
            groups.append(group)
        row += rows
    return groups, first
