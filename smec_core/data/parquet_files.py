"""Single Parquet files: found, opened, and read by row groups, batch by batch."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from smec_core.data.hub import HubFiles
from smec_core.errors import InputError, RowError, SmecError, one_line

READ_BUFFER_BYTES = 8 << 20
NULL_VECTOR = "is null; every row needs a vector"


def stamp_of_file(filesystem: pafs.FileSystem, path: str) -> str:
    """What changes whenever a file is written anew, without reading it: inode and time of change, ETag, or git's hash.

    Unlike the time of modification, no program sets these; they change with a file's owner, permissions and hard links,
    too. Empty where the file system has no such thing.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        found = os.stat(path)
        return f"{found.st_ino}-{found.st_ctime_ns}"
    if isinstance(filesystem, pafs.PyFileSystem) and isinstance(filesystem.handler, HubFiles):
        return filesystem.handler.stamp_of_file(path)
    with filesystem.open_input_stream(path, compression=None) as source:
        told = {key.lower(): value for key, value in (source.metadata() or {}).items()}
    return bytes(told.get("etag", b"")).decode()


class FileState(NamedTuple):
    """A file as it is now; a number as its stamp is its time of modification, where the file system has no stamps."""

    name: str
    bytes: int
    stamp: str | int


def states_of(filesystem: pafs.FileSystem, paths: Sequence[str]) -> list[FileState]:
    """The states of some files; nothing is read."""
    infos = filesystem.get_file_info(list(paths))
    with ThreadPoolExecutor(8) as pool:
        stamps = list(pool.map(lambda path: stamp_of_file(filesystem, path), paths))
    return [
        FileState(info.base_name, info.size, stamp or info.mtime_ns) for info, stamp in zip(infos, stamps, strict=True)
    ]


def stamp_of(states: Sequence[FileState]) -> str:
    """Hash (hex) that changes when one of some files does."""
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


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
        raise InputError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
    except OSError as error:
        raise SmecError(f"{path}: cannot be read ({one_line(error)})") from error


def read_batches(
    parquet: pq.ParquetFile,
    path: str,
    batch_rows: int,
    columns: list[str],
    vector: str,
    groups: list[int],
    row: int = 0,
) -> Iterator[pa.RecordBatch]:
    """Batches of some row groups; `row` is the file's row of the first, `vector` names the column of the vectors.

    Raises:
        RowError: a null in a column of fixed-size lists, which pyarrow cannot read.
        SmecError: rows that cannot be read.
    """
    batches = parquet.iter_batches(batch_rows, row_groups=groups, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            # how pyarrow meets a null in a FixedSizeList column
            null = re.search(r"Expected all lists to be of size=\d+ but index (\d+) had size=0", str(error))
            if null:
                column = _column_with_null(parquet, columns, groups) or vector
                why = NULL_VECTOR if column == vector else "a null in a fixed-size list; store it as lists"
                raise RowError(path, row + int(null[1]) - 1, column, why) from error
            # a connection that broke and a damaged page look the same
            raise SmecError(
                f"{path}: rows from {row} on cannot be read ({one_line(error)}); run again, or write the file anew"
            ) from error
        if batch is None:
            return
        yield batch
        row += len(batch)


def _column_with_null(parquet: pq.ParquetFile, columns: list[str], groups: list[int]) -> str | None:
    for column in columns:
        try:
            parquet.read_row_groups(groups, columns=[column])
        except (pa.ArrowException, OSError):
            return column
    return None


def read_any_batches(
    parquet: pq.ParquetFile,
    filesystem: pafs.FileSystem,
    path: str,
    batch_rows: int,
    columns: list[str],
    vector: str,
    groups: list[int],
    row: int = 0,
) -> Iterator[pa.RecordBatch]:
    """As `read_batches`, but the vectors come as lists of any length, with nulls where there are some."""
    footer = io.BytesIO()
    parquet.metadata.write_metadata_file(footer)
    # what pyarrow reads where the note of Arrow's types is not found
    footer = io.BytesIO(footer.getvalue().replace(b"ARROW:schema", b"arrow_schema"))
    others = [name for name in columns if name != vector]
    with open_parquet(filesystem, path, pq.read_metadata(footer)) as plain:
        # one by one: where a column is a dictionary, batches end with their row group, and elsewhere they need not
        for group in groups:
            for rows, vectors in zip(
                read_batches(parquet, path, batch_rows, others, vector, [group], row),
                read_batches(plain, path, batch_rows, [vector], vector, [group], row),
                strict=True,
            ):
                yield rows.append_column(vector, vectors[vector]).select(columns)
            row += parquet.metadata.row_group(group).num_rows


def row_groups(parquet: pq.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
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
