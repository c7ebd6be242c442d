"""Embedding tables, as a rule in Parquet: opened by footer, read in validated blocks, written as fixed-size lists.

Shapes: N rows, D embedding dims.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from smec_core.data.columns import DEFAULT_NAMES, ColumnNames, Wanted, ids_of, judge_schema, strings_of
from smec_core.data.parquet_files import NULL_VECTOR
from smec_core.data.table_files import TableFile, open_rows
from smec_core.data.tables import find_table
from smec_core.data.uri import open_filesystem, public_uri, shown_path, without_slash
from smec_core.errors import InputError, RowError, SmecError

ROW_GROUP_ROWS = 65_536
READ_ROWS = 8192
ID_ROWS = 1 << 18


class ParquetPart(NamedTuple):
    """One file of a table, also a fragment of a Lance dataset.

    `start` is the global row of its first row, `groups` are the rows of its row groups, and `values` are of columns
    that are not in it, the same for every row.
    """

    path: str
    rows: int
    start: int
    groups: tuple[int, ...] = ()
    values: tuple[tuple[str, pa.Scalar], ...] = ()

    def added(self, schema: pa.Schema) -> dict[str, pa.Scalar]:
        """Those of its values that are of no column in its own schema."""
        return {name: value for name, value in self.values if name not in schema.names}


class Batch(NamedTuple):
    """Consecutive rows of a file as they are stored, not checked; `row` is the file's row of the first.

    `rows` has the columns id and embedding, whatever `names` the file has for them.
    """

    part: ParquetPart
    row: int
    rows: pa.RecordBatch
    place: str
    """The file, as it is shown."""
    names: ColumnNames = DEFAULT_NAMES


class Block(NamedTuple):
    """Consecutive rows of a table: `row` is the global row of the first, `vectors_ND` is float32 and not normalised."""

    row: int
    ids: pa.Array
    vectors_ND: np.ndarray
    table: pa.Table

    @classmethod
    def of(cls, batch: Batch, dim: int) -> "Block":
        """Checks a batch of vectors of `dim` dims.

        Raises:
            RowError: null or empty id, null, NaN or infinite values, a zero vector, or a differing dim.
        """
        part, row, rows, place, names = batch
        ids = ids_of(rows["id"], place, names.id, row)
        vectors_ND = vectors_of(rows["embedding"], dim, place, row, names.embedding)
        return cls(part.start + row, ids, vectors_ND, pa.Table.from_batches([rows]))


class EmbeddingTable:
    """The rows (id, embedding) of one folder of Parquet files or of one file, in (sorted file, row) order."""

    def __init__(
        self, filesystem: pafs.FileSystem, files: list[ParquetPart], dim: int, names: ColumnNames = DEFAULT_NAMES
    ) -> None:
        self.filesystem = filesystem
        self.files = files
        self.dim = dim
        self.names = names
        self.rows = sum(part.rows for part in files)

    @classmethod
    def open(cls, uri: str, dim: int | None = None, names: ColumnNames = DEFAULT_NAMES) -> "EmbeddingTable":
        """Reads footers only, and, where no `dim` is given, the first row of each file for it.

        Args:
            uri: a file, a folder of files, or either without the ending .parquet.
            dim: D of the vectors, where it is known.
            names: what the columns are called.

        Raises:
            InputError: nothing there, unreadable, empty, or a missing or wrongly typed column.
        """
        filesystem, path = open_filesystem(uri)
        parts: list[ParquetPart] = []
        dims: dict[str, int] = {}
        start = 0
        for file in find_table(filesystem, without_slash(path)):
            with open_rows(filesystem, file) as opened:
                shown = shown_path(filesystem, file)
                judge_schema(shown, opened.schema, names.of_vectors)
                rows = opened.groups
                if sum(rows) and dim is None:
                    dims[shown] = _first_dim(opened, shown, names.embedding)
            parts.append(ParquetPart(file, sum(rows), start, rows))
            start += sum(rows)
        if not start:
            raise InputError(f"{public_uri(uri)}: holds no rows")
        for file, other in dims.items():
            dim = dim or other
            if other != dim:
                column, first = names.embedding, next(iter(dims))
                raise InputError(f"{file}: row 0, column {column}: {other} dims, but {first} has {dim}")
        assert dim is not None
        return cls(filesystem, parts, dim, names)

    def with_values(self, values: Mapping[str, Mapping[str, pa.Scalar]]) -> "EmbeddingTable":
        """The table with columns that its files do not hold: by path, the value that a column has in all of a file."""
        if values and not all(part.path in values for part in self.files):
            raise SmecError(f"{self.shown(self.files[0])}: the table has changed while it was opened; run again")
        files = [part._replace(values=tuple(values.get(part.path, {}).items())) for part in self.files]
        return EmbeddingTable(self.filesystem, files, self.dim, self.names)

    def schema_of(self, part: ParquetPart) -> pa.Schema:
        """The columns of a file, with the vectors and their ids called id and embedding.

        Raises:
            InputError: it has a column of that name beside.
        """
        with open_rows(self.filesystem, part.path) as opened:
            schema = opened.schema
        for name, value in part.added(schema).items():
            schema = schema.append(pa.field(name, value.type))
        schema = pa.schema([field.with_name(self._name_here(field.name)) for field in schema], schema.metadata)
        for name in ("id", "embedding"):
            if schema.names.count(name) > 1:
                taken = getattr(self.names, name)
                raise InputError(f"{self.shown(part)}: column {name}: {taken} is taken for it; rename or remove it")
        return schema

    def shown(self, part: ParquetPart) -> str:
        """A file of it as messages name it."""
        return shown_path(self.filesystem, part.path)

    def _name_here(self, name: str) -> str:
        return {self.names.id: "id", self.names.embedding: "embedding"}.get(name, name)

    def _name_there(self, name: str) -> str:
        return {"id": self.names.id, "embedding": self.names.embedding}.get(name, name)

    def ids(self) -> pa.ChunkedArray:
        """All ids in global row order; those of a large table take much memory.

        Raises:
            InputError: a null, or an empty id.
            SmecError: rows that cannot be read.
        """
        return pa.chunked_array([ids for _, ids in self.id_chunks()], pa.string())

    def id_chunks(self) -> Iterator[tuple[int, pa.Array]]:
        """All ids in global row order, some at a time: the global row of the first, and the ids.

        Raises:
            InputError: a null, or an empty id.
            SmecError: rows that cannot be read.
        """
        name = self.names.id
        for part in self.files:
            with open_rows(self.filesystem, part.path) as opened:
                for row, batch in opened.batches([name], ID_ROWS):
                    yield part.start + row, ids_of(batch[name], self.shown(part), name, row)

    def labels(self, column: str) -> Iterator[tuple[int, pa.Array]]:
        """A column of labels in global row order, some at a time: the row of the first, and strings, null for none.

        Raises:
            InputError: the column is missing in a file, or holds something else.
            SmecError: rows that cannot be read.
        """
        for part in self.files:
            with open_rows(self.filesystem, part.path) as opened:
                schema, added = opened.schema, part.added(opened.schema)
                for name, value in added.items():
                    schema = schema.append(pa.field(name, value.type))
                judge_schema(self.shown(part), schema, {column: Wanted((column,), "label")})
                if column in added:
                    yield part.start, pc.cast(pa.repeat(added[column], part.rows), pa.string())
                    continue
                for row, batch in opened.batches([column], ID_ROWS):
                    yield part.start + row, strings_of(batch[column], self.shown(part), column, row, nulls=True)

    def locate(self, row: int) -> str:
        """Names the file and the row in it of a global row."""
        part = next(part for part in self.files if part.start <= row < part.start + part.rows)
        return f"{self.shown(part)}: row {row - part.start}"

    def blocks(
        self, start: int = 0, stop: int | None = None, batch_rows: int = READ_ROWS, columns: Sequence[str] = ()
    ) -> Iterator[Block]:
        """Rows `start` to `stop` in global order, read a batch at a time; only the row groups that hold them are read.

        Raises:
            RowError: a row that is no sound vector, with its place and what is wrong with it.
        """
        for batch in self.batches(start, stop, batch_rows, columns):
            yield Block.of(batch, self.dim)

    def batches(
        self,
        start: int = 0,
        stop: int | None = None,
        batch_rows: int = READ_ROWS,
        columns: Sequence[str] = (),
        any_row: bool = False,
    ) -> Iterator[Batch]:
        """The same rows, not checked; with `any_row` vectors come as lists of any length, so that none is unreadable.

        Raises:
            InputError: rows that cannot be read; without `any_row` a null in a column of fixed-size lists is one.
        """
        stop = self.rows if stop is None else stop
        wanted = list(dict.fromkeys(["id", "embedding", *columns]))
        vector = self.names.embedding
        for part in self.files:
            if part.start + part.rows <= start or part.start >= stop:
                continue
            low, high = start - part.start, stop - part.start
            with open_rows(self.filesystem, part.path) as opened:
                added = part.added(opened.schema)
                stored = [self._name_there(name) for name in wanted if name not in added]
                for row, rows in opened.batches(stored, batch_rows, vector, max(low, 0), min(high, part.rows), any_row):
                    first, last = max(low - row, 0), min(high - row, len(rows))
                    if first < last:
                        found = rows.rename_columns([self._name_here(name) for name in stored])
                        for name in set(wanted) & added.keys():
                            found = found.append_column(name, pa.repeat(added[name], len(found)))
                        found = found.select(wanted).slice(first, last - first)
                        yield Batch(part, row + first, found, self.shown(part), self.names)


def vectors_of(column: pa.Array, dim: int, file: str, row: int, name: str = "embedding") -> np.ndarray:
    """Validated float32 vectors of an embedding column, shape (N, `dim`); `row` is the file's row of the first."""

    def refuse(bad_N: np.ndarray, why: str) -> None:
        if bad_N.any():
            raise RowError(file, row + int(bad_N.argmax()), name, why)

    refuse(column.is_null().to_numpy(zero_copy_only=False), NULL_VECTOR)
    dims_N = _row_dims(column)
    refuse(dims_N != dim, f"has {dims_N[(dims_N != dim).argmax()] if len(dims_N) else 0} dims, but {dim} are expected")
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    flat = column.flatten()
    if flat.null_count:
        refuse(
            flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, dim).any(1),
            "holds a null value (as pandas stores NaN); fix or remove the row",
        )
    stored_ND = flat.to_numpy(zero_copy_only=False).reshape(-1, dim)
    # what float32 cannot hold becomes infinity and is refused below
    with np.errstate(over="ignore"):
        vectors_ND = stored_ND.astype(np.float32, copy=False)
    norms_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    if not np.isfinite(norms_N).all():
        refuse(~np.isfinite(stored_ND).all(1), "holds NaN or infinity; fix or remove the row")
        refuse(~np.isfinite(norms_N), "has a norm too large for float32; scale the vectors down")
    # smaller ones have lost digits, or all of them
    is_small_N = norms_N < np.finfo(np.float32).tiny
    if is_small_N.any():
        refuse(~stored_ND.any(1), "is a zero vector, which has no direction; remove the row")
        refuse(is_small_N, "has a norm too small for float32; scale the vectors up")
    return vectors_ND


def unit_rows(vectors_ND: np.ndarray) -> np.ndarray:
    """Scales rows (N, D), none of them zero, to norm 1."""
    # as np.linalg.norm does it, but in one matrix: new memory takes longer than the arithmetic
    unit_ND = np.multiply(vectors_ND, vectors_ND)
    norm_N1 = np.sqrt(np.add.reduce(unit_ND, axis=1, keepdims=True))
    return np.divide(vectors_ND, norm_N1, out=unit_ND)


def embedding_column(vectors_ND: np.ndarray) -> pa.FixedSizeListArray:
    """Packs vectors (N, D) as FixedSizeList<D> of their own dtype."""
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])


def write_embeddings(
    path: str,
    ids: Sequence[str] | pa.Array,
    vectors_ND: np.ndarray,
    extra: dict[str, pa.Array] | None = None,
) -> None:
    """Writes one Parquet file (id, embedding, extra columns), without dictionary encoding of the embedding."""
    columns = {"id": pa.array(ids, pa.string()), "embedding": embedding_column(vectors_ND), **(extra or {})}
    pq.write_table(pa.table(columns), path, use_dictionary=False, row_group_size=ROW_GROUP_ROWS)


def _first_dim(opened: TableFile, file: str, name: str) -> int:
    kind = opened.schema.field(name).type
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        return int(kind.list_size)
    _, rows = next(opened.batches([name], 1, name, 0, 1))
    return dim_of(rows[name], file, name)


def dim_of(first: pa.Array, file: str, name: str) -> int:
    """D of a column of vectors, by its first row.

    Raises:
        RowError: there is none.
    """
    dim = int(_row_dims(first)[0])
    if not first[0].is_valid or not dim:
        raise RowError(file, 0, name, "is null or has 0 dims; every row needs a vector")
    return dim


def _row_dims(column: pa.Array) -> np.ndarray:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size)
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
