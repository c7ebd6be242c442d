"""Text in Parquet, as datasets on the Hugging Face hub have it: _id or id, text, and title where there is one."""

import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.ingest.rows import START, Position, Text
from smec_core.data.columns import Wanted, judge_schema, strings_of
from smec_core.errors import InputError, SmecError, one_line

READ_ROWS = 1024
COLUMNS = {"_id": Wanted(("_id", "id"), "id"), "text": Wanted(("text",), "text")}
TITLE = {"title": Wanted(("title",), "text")}


class ParquetTexts:
    """The texts of Parquet files; an offset is a row.

    Attributes:
        path: the file, or the folder of several.
    """

    def __init__(self, filesystem: pafs.FileSystem, paths: list[str]) -> None:
        self.filesystem = filesystem
        self.paths = paths
        self.path = paths[0] if len(paths) == 1 else posixpath.dirname(paths[0])

    def read(self, start: Position = START) -> Iterator[Text]:
        """Validated texts from a position on; only the row groups that hold them are read.

        Raises:
            InputError: an unreadable file, a missing or wrongly typed column, a null or an empty id.
        """
        for file in range(start.file, len(self.paths)):
            first = start.offset if file == start.file else 0
            yield from self._read_file(file, first)

    def locate(self, position: Position) -> str:
        """Names the file and the row, from 0."""
        return f"{self.paths[position.file]}: row {position.before}"

    def _read_file(self, file: int, first: int) -> Iterator[Text]:
        path, row = self.paths[file], 0
        try:
            with pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=False) as parquet:
                schema = parquet.schema_arrow
                wanted = COLUMNS | (TITLE if "title" in schema.names else {})
                names = list(judge_schema(path, schema, wanted).values())
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if row + rows > first:
                        for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=names):
                            yield from self._texts(batch, names, file, row, max(first - row, 0))
                            row += len(batch)
                    else:
                        row += rows
        except SmecError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: rows from {row} on cannot be read ({one_line(error)})") from error

    def _texts(self, batch: pa.RecordBatch, names: list[str], file: int, row: int, skipped: int) -> Iterator[Text]:
        path = self.paths[file]
        keys = strings_of(batch[names[0]], path, names[0], row).to_pylist()
        texts = strings_of(batch[names[1]], path, names[1], row, what="a text").to_pylist()
        titles = [None] * len(batch)
        if len(names) > 2:
            titles = strings_of(batch[names[2]], path, names[2], row, nulls=True).to_pylist()
        for index in range(skipped, len(batch)):
            position = Position(file, row + index, row + index)
            if not keys[index]:
                raise InputError(f"{self.locate(position)}, column {names[0]}: is empty; every row needs an id")
            yield Text.checked(position, self.locate(position), keys[index], titles[index], texts[index])
