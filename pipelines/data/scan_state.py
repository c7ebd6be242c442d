"""What a long scan has read so far, stored piece by piece: a killed one goes on from there.

_scans/KEY/00000.safetensors, 00000.parquet    sums of a piece, and the rows of it that are kept
_scans/KEY/_done/00000.json                    what these two were when they were written
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipelines.console import warn
from pipelines.storage.files import new_file, remove_folder
from pipelines.storage.manifest import finish_task, finished_task
from pipelines.storage.run_folder import digest
from smec_core.data.parquet import EmbeddingTable, ParquetPart, embedding_column
from smec_core.data.records import read_bytes
from smec_core.data.scan import GRID, Keep, TableScan
from smec_core.data.stored_files import describe
from smec_core.data.table_files import stamp_of, states_of
from smec_core.data.uri import open_filesystem, shown_path
from smec_core.errors import SmecError, one_line

FOLDER, FORMAT = "_scans", 1
LEFT_SECONDS = 7 * 86_400


class ScanState:
    """The finished pieces of one scan.

    It saves time and nothing else: what of it cannot be read or written is read from the table.
    """

    def __init__(
        self, storage: str, table: EmbeddingTable, keep: Keep, pieces: Sequence[Sequence[ParquetPart]]
    ) -> None:
        """That of a table as it is now.

        Args:
            storage: folder or URI.
            table: the table.
            keep: what is kept of it.
            pieces: its files, piece by piece.
        """
        key = {
            "format": FORMAT,
            "stamp": stamp_of(states_of(table.filesystem, [part.path for part in table.files])),
            "names": table.names.model_dump(),
            "shape": [table.rows, table.dim, keep.sample, GRID],
            "pieces": [[part.start for part in files] for files in pieces],
            "hashes": hashlib.sha256(keep.hashes.tobytes()).hexdigest(),
        }
        self._keep, self._dim = keep, table.dim
        self._filesystem, root = open_filesystem(storage)
        self._above = f"{root.rstrip('/')}/{FOLDER}"
        self._folder = f"{self._above}/{digest(key)}"
        self._is_open = True

    def take(self, number: int) -> TableScan | None:
        """A piece that an earlier start has read; None where it is not there, or not as it was written."""
        name = _name(number)
        try:
            if finished_task(self._filesystem, self._folder, name) is None:
                return None
            sums = load(read_bytes(self._filesystem, f"{self._folder}/{name}.safetensors") or b"")
            rows = pq.read_table(f"{self._folder}/{name}.parquet", filesystem=self._filesystem)
            vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, self._dim)
            return TableScan.restored(self._keep, sums, rows["id"].combine_chunks(), vectors)
        except (OSError, SmecError, SafetensorError, pa.ArrowException):
            # another start that has ended meanwhile has removed it, or the storage is away
            return None

    def put(self, number: int, piece: TableScan) -> None:
        """Stores a piece; where that fails it says so, and stores no more."""
        if not self._is_open:
            return
        sums, ids, x_KD = piece.state()
        names = [f"{_name(number)}.{ending}" for ending in ("safetensors", "parquet")]
        try:
            with new_file(self._filesystem, f"{self._folder}/{names[0]}") as sink:
                sink.write(save(sums))
            rows = pa.table({"id": ids, "embedding": embedding_column(x_KD)})
            with new_file(self._filesystem, f"{self._folder}/{names[1]}") as sink:
                pq.write_table(rows, sink, use_dictionary=False, compression="none", write_page_checksum=True)
            files = [describe(self._filesystem, f"{self._folder}/{name}", name) for name in names]
            finish_task(self._filesystem, self._folder, _name(number), files)
        except OSError as error:
            self._is_open = False
            place = shown_path(self._filesystem, self._folder)
            warn(f"{place}: cannot be written to ({one_line(error)}); a killed scan would begin anew")

    def remove(self) -> None:
        """Removes it, since the scan is done, and what scans that nobody went on with have left a week ago."""
        with suppress(OSError):
            remove_folder(self._filesystem, self._folder)
            selector = pafs.FileSelector(self._above, recursive=True, allow_not_found=True)
            latest: dict[str, float] = {}
            for info in self._filesystem.get_file_info(selector):
                if info.type == pafs.FileType.File:
                    key = info.path.removeprefix(f"{self._above}/").partition("/")[0]
                    latest[key] = max(latest.get(key, 0.0), (info.mtime_ns or 0) / 1e9)
            for key, seconds in latest.items():
                if seconds < time.time() - LEFT_SECONDS:
                    remove_folder(self._filesystem, f"{self._above}/{key}")


def _name(number: int) -> str:
    return f"{number:05d}"
