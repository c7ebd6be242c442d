"""What a long scan has read so far, stored piece by piece: a killed one goes on from there.

_scans/KEY/00000.safetensors, 00000.parquet    sums of a piece, and the rows of it that are kept
_scans/KEY/_done/00000.json                    what these two were when they were written
"""

import hashlib
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from pipelines.storage.files import new_file, read_bytes, remove_folder
from pipelines.storage.manifest import describe, finish_task, finished_task
from pipelines.storage.run_folder import digest
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.parquet_files import stamp_of, states_of
from smec_core.data.scan import Keep, TableScan
from smec_core.data.uri import open_filesystem

FOLDER = "_scans"


class ScanState:
    """The finished pieces of one scan, in a folder that all nodes need not reach."""

    def __init__(self, storage: str, key: str) -> None:
        self._filesystem, root = open_filesystem(storage)
        self._above = f"{root.rstrip('/')}/{FOLDER}"
        self._folder = f"{self._above}/{key}"

    @classmethod
    def of(cls, storage: str, table: EmbeddingTable, keep: Keep, pieces: int) -> Self:
        """That of a table as it is now, cut into so many pieces, and of what is kept of it."""
        key = {
            "stamp": stamp_of(states_of(table.filesystem, [part.path for part in table.files])),
            "names": table.names.model_dump(),
            "shape": [table.rows, table.dim, keep.sample, pieces],
            "hashes": hashlib.sha256(keep.hashes.tobytes()).hexdigest(),
        }
        return cls(storage, digest(key))

    def take(self, number: int, keep: Keep, dim: int) -> TableScan | None:
        """A piece that an earlier start has read; None where it is not there, or not as it was written."""
        if finished_task(self._filesystem, self._folder, _name(number)) is None:
            return None
        sums = load(read_bytes(self._filesystem, f"{self._folder}/{_name(number)}.safetensors") or b"")
        rows = pq.read_table(f"{self._folder}/{_name(number)}.parquet", filesystem=self._filesystem)
        vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
        return TableScan.restored(keep, sums, rows["id"].combine_chunks(), vectors)

    def put(self, number: int, piece: TableScan) -> None:
        """Stores a piece."""
        sums, ids, x_KD = piece.state()
        names = [f"{_name(number)}.{ending}" for ending in ("safetensors", "parquet")]
        with new_file(self._filesystem, f"{self._folder}/{names[0]}") as sink:
            sink.write(save(sums))
        rows = pa.table({"id": ids, "embedding": embedding_column(x_KD)})
        with new_file(self._filesystem, f"{self._folder}/{names[1]}") as sink:
            pq.write_table(rows, sink, use_dictionary=False, compression="none", write_page_checksum=True)
        files = [describe(self._filesystem, f"{self._folder}/{name}", name) for name in names]
        finish_task(self._filesystem, self._folder, _name(number), files)

    def remove(self) -> None:
        """Removes all of it: the scan is done."""
        remove_folder(self._filesystem, self._folder)


def _name(number: int) -> str:
    return f"{number:05d}"
