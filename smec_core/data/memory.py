"""A dataset in memory, held to the same rules as one of files.

Shapes: N rows, D dims.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.data.columns import DEFAULT_NAMES, ColumnNames, Wanted, ids_of, judge_schema, strings_of
from smec_core.data.dataset import Dataset
from smec_core.data.fingerprint import content_fingerprint, hash_ids
from smec_core.data.parquet import ID_ROWS, READ_ROWS, Batch, EmbeddingTable, ParquetPart, dim_of
from smec_core.data.qrels import QrelsFile, as_table, judgements_in
from smec_core.data.tables import QRELS, Table
from smec_core.errors import InputError

URI = "memory://data"
CURE = "columns={'%s': NAME}"
"""How Python gives a column another name."""


class MemoryTable(EmbeddingTable):
    """The rows (id, embedding) of an Arrow table, which is not copied.

    Attributes:
        content: the table, with columns of these names.
        given: the same with all its columns.
    """

    def __init__(self, name: str, table: pa.Table, names: ColumnNames = DEFAULT_NAMES, dim: int | None = None) -> None:
        """Takes the table.

        Args:
            name: for messages.
            table: the rows.
            names: what the columns are called.
            dim: D; needed where there are no rows.

        Raises:
            InputError: no rows, or a missing or wrongly typed column.
        """
        judge_schema(name, table.schema, names.of_vectors, CURE)
        rows = table.num_rows
        if dim is None:
            if not rows:
                raise InputError(f"{name}: holds no rows")
            # of the first chunk that has rows
            first = table[names.embedding].slice(0, 1).combine_chunks()
            dim = dim_of(first.chunk(0) if isinstance(first, pa.ChunkedArray) else first, name, names.embedding)
        super().__init__(pafs.LocalFileSystem(), [ParquetPart(name, rows, 0, (rows,))], dim, names)
        self.given = table
        self.content = table.select([names.id, names.embedding]).rename_columns(["id", "embedding"])

    @classmethod
    def empty(cls, name: str, dim: int) -> "MemoryTable":
        """A table without rows."""
        vectors = pa.array([], pa.list_(pa.float32(), dim))
        return cls(name, pa.table({"id": pa.array([], pa.string()), "embedding": vectors}), dim=dim)

    def id_chunks(self) -> Iterator[tuple[int, pa.Array]]:
        """All ids in order, some at a time: the row of the first, and the ids.

        Raises:
            RowError: a null, or an empty id.
        """
        name, row = self.files[0].path, 0
        for batch in self.content.select(["id"]).to_batches(max_chunksize=ID_ROWS):
            yield row, ids_of(batch["id"], name, self.names.id, row)
            row += len(batch)

    def labels(self, column: str) -> Iterator[tuple[int, pa.Array]]:
        """A column of labels in order, some at a time: the row of the first, and strings, null for none.

        Raises:
            InputError: the column is missing, or holds something else.
        """
        name, row = self.files[0].path, 0
        judge_schema(name, self.given.schema, {column: Wanted((column,), "label")}, CURE)
        for batch in self.given.select([column]).to_batches(max_chunksize=ID_ROWS):
            yield row, strings_of(batch[column], name, column, row, nulls=True)
            row += len(batch)

    def batches(
        self,
        start: int = 0,
        stop: int | None = None,
        batch_rows: int = READ_ROWS,
        columns: Sequence[str] = (),
        any_row: bool = False,
    ) -> Iterator[Batch]:
        """Rows `start` to `stop`, not checked; there are no `columns` beside, and no row is unreadable."""
        stop, row = self.rows if stop is None else stop, start
        for batch in self.content.slice(start, stop - start).to_batches(max_chunksize=batch_rows):
            yield Batch(self.files[0], row, batch, self.files[0].path, self.names)
            row += len(batch)


@dataclass(frozen=True)
class MemoryDataset(Dataset):
    """A dataset whose tables are in memory.

    Attributes:
        judged: hash (hex) of its judgements.
        content: the tables as files would hold them, by their names in a dataset's folder.
    """

    leave_out = "leave qrels out"
    judged: str = ""
    content: Mapping[str, pa.Table] = field(default_factory=dict)

    @classmethod
    def made(
        cls,
        corpus: MemoryTable,
        queries: MemoryTable,
        qrels: Mapping[str, pa.Table],
        exclude_self: bool = False,
        names: ColumnNames = DEFAULT_NAMES,
    ) -> "MemoryDataset":
        """Puts tables together.

        Args:
            corpus: documents.
            queries: queries.
            qrels: judgements of each split.
            exclude_self: see `Dataset.open`.
            names: what the columns of the judgements are called.

        Raises:
            InputError: anything that breaks the data contract, with table, row and column.
        """
        found, digest = {}, hashlib.sha256()
        for split, table in qrels.items():
            file = _judgements(f"{QRELS}/{split}", table, names)
            found[split] = [file]
            digest.update(f"{split} {len(file.score_J)}\n".encode())
            parts = hash_ids(file.query_id), hash_ids(file.doc_id), file.score_J
            # whatever their order, which sets have none of
            order_J = np.lexsort(parts)
            for part in parts:
                digest.update(part[order_J].tobytes())
        tables = {split: Table(split, []) for split in found}
        made = cls.of(URI, corpus, queries, found, tables, exclude_self=exclude_self)
        content = {f"{QRELS}/{split}": as_table(files) for split, files in found.items()}
        content = {"corpus": corpus.content, "queries": queries.content, **content}
        return replace(made, judged=digest.hexdigest(), content=content)

    def _fingerprint_of(self, checks: Sequence[int]) -> str:
        return content_fingerprint([*self._told(checks), self.judged], pafs.LocalFileSystem(), [])

    def check_unchanged(self) -> None:
        """Nothing to look at: the tables are held."""


def _judgements(name: str, table: pa.Table, names: ColumnNames) -> QrelsFile:
    """The judgements of a split.

    Raises:
        InputError: none, or columns that are missing or hold something else.
    """
    if not table.num_rows:
        raise InputError(f"{name}: the split is empty; add judgements or leave it out")
    return judgements_in(table, name, judge_schema(name, table.schema, names.of_qrels, CURE))
