"""Single Parquet files: opened, and read by row groups, batch by batch."""

import io
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from smec_core.data.uri import shown_path
from smec_core.errors import InputError, RowError, SmecError, one_line

READ_BUFFER_BYTES = 8 << 20
NULL_VECTOR = "is null; every row needs a vector"
NULL_IN_FIXED = "a null in a fixed-size list; store it as lists"


def open_parquet(filesystem: pafs.FileSystem, path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a file; `metadata` stands in for its footer.

    Raises:
        InputError: it is no Parquet file.
        SmecError: it cannot be read now.
    """
    try:
        # pre-buffering would keep all that was read of a file in memory until it is closed
        return pq.ParquetFile(
            path,
            filesystem=filesystem,
            metadata=metadata,
            pre_buffer=False,
            buffer_size=READ_BUFFER_BYTES,
            page_checksum_verification=True,
        )
    except SmecError:
        raise
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise InputError(f"{shown_path(filesystem, path)}: not a readable Parquet file ({one_line(error)})") from error
    except OSError as error:
        raise SmecError(f"{shown_path(filesystem, path)}: cannot be read ({one_line(error)})") from error


class ParquetRows:
    """The rows of a Parquet file.

    Attributes:
        schema: its columns.
        groups: the rows of its row groups.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._filesystem, self._path, self._shown = filesystem, path, shown_path(filesystem, path)
        self._parquet = open_parquet(filesystem, path)
        self.schema: pa.Schema = self._parquet.schema_arrow
        metadata = self._parquet.metadata
        self.groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))

    def __enter__(self) -> "ParquetRows":
        return self

    def __exit__(self, *unused: object) -> None:
        self._parquet.close()

    def batches(
        self,
        columns: Sequence[str],
        batch_rows: int,
        vector: str = "",
        start: int = 0,
        stop: int | None = None,
        any_row: bool = False,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches that hold rows `start` to `stop`, and others of the same row groups; with the row of their first.

        Args:
            columns: to read, in this order.
            batch_rows: of a batch.
            vector: the column of the vectors, where one of them is.
            start: the first row.
            stop: the row after the last; by default all are read.
            any_row: vectors come as lists of any length, with nulls where there are some.

        Raises:
            RowError: a null in a column of fixed-size lists, which pyarrow cannot read.
            SmecError: rows that cannot be read.
        """
        groups, row = self._groups_of(start, sum(self.groups) if stop is None else stop)
        read = self._any_batches if any_row else self._batches
        for batch in read([*columns], batch_rows, vector, groups, row):
            # read in the order of the file
            yield row, batch.select(columns)
            row += len(batch)

    def _groups_of(self, start: int, stop: int) -> tuple[list[int], int]:
        """Row groups that hold rows `start` to `stop`, and the row of the first of them."""
        starts = [0, *accumulate(self.groups)]
        groups = [group for group, (low, high) in enumerate(pairwise(starts)) if low < min(high, stop) and high > start]
        return groups, starts[groups[0]] if groups else 0

    def _batches(
        self,
        columns: list[str],
        batch_rows: int,
        vector: str,
        groups: list[int],
        row: int,
        parquet: pq.ParquetFile | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of row groups, the first of which begins at `row`; `parquet` stands in for the file."""
        parquet = parquet or self._parquet
        batches = parquet.iter_batches(batch_rows, row_groups=groups, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                # how pyarrow meets a null in a FixedSizeList column
                null = re.search(r"Expected all lists to be of size=\d+ but index (\d+) had size=0", str(error))
                if null:
                    column = _column_with_null(parquet, columns, groups) or vector
                    why = NULL_VECTOR if column == vector else NULL_IN_FIXED
                    raise RowError(self._shown, row + int(null[1]) - 1, column, why) from error
                # a connection that broke and a damaged page look the same
                raise SmecError(
                    f"{self._shown}: rows from {row} on cannot be read ({one_line(error)}); run again, or write the "
                    "file anew"
                ) from error
            if batch is None:
                return
            yield batch
            row += len(batch)

    def _any_batches(
        self, columns: list[str], batch_rows: int, vector: str, groups: list[int], row: int
    ) -> Iterator[pa.RecordBatch]:
        footer = io.BytesIO()
        self._parquet.metadata.write_metadata_file(footer)
        # what pyarrow reads where the note of Arrow's types is not found
        footer = io.BytesIO(footer.getvalue().replace(b"ARROW:schema", b"arrow_schema"))
        others = [name for name in columns if name != vector]
        with open_parquet(self._filesystem, self._path, pq.read_metadata(footer)) as plain:
            # one by one: where a column is a dictionary, batches end with their row group, and elsewhere they need not
            for group in groups:
                for rows, vectors in zip(
                    self._batches(others, batch_rows, vector, [group], row),
                    self._batches([vector], batch_rows, vector, [group], row, plain),
                    strict=True,
                ):
                    yield rows.append_column(vector, vectors[vector])
                row += self.groups[group]


def _column_with_null(parquet: pq.ParquetFile, columns: list[str], groups: list[int]) -> str | None:
    for column in columns:
        try:
            parquet.read_row_groups(groups, columns=[column])
        except (pa.ArrowException, OSError):
            return column
    return None
