"""Lance datasets: each fragment of a version is a file of the table, under a name that no real file has.

    corpus/_versions/7/fragment-000003

Rows of a fragment that are deleted are none of its rows. A version never changes, so what is open stays as it is.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from smec_core.data.columns import first_true
from smec_core.data.object_store import ToldErrors
from smec_core.data.parquet_files import NULL_IN_FIXED
from smec_core.data.uri import shown_path
from smec_core.errors import InputError, RowError, SmecError, extra, one_line

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

VERSIONS = "_versions"
GROUP_ROWS = 1 << 16
"""Rows to read at once."""
_MAGIC = b"LANC"
_MANIFEST = re.compile(r"\d+\.manifest")
_FRAGMENT = re.compile(rf"(.+)/{VERSIONS}/(\d+)/fragment-(\d+)")
_SOURCE_LINE = re.compile(r", (location: )?/\S+\.rs:\d+:\d+")
_READ_AHEAD = {"batch_readahead": 4, "io_buffer_size": 32 << 20}
"""A fragment may have a million rows, and Lance would read 2 GiB ahead."""


def is_lance(filesystem: pafs.FileSystem, folder: str, subfolders: Collection[str]) -> bool:
    """Whether a folder with such subfolders is a Lance dataset: `_versions` may be another's."""
    if VERSIONS not in subfolders:
        return False
    infos = filesystem.get_file_info(pafs.FileSelector(f"{folder}/{VERSIONS}"))
    manifest = next((info for info in infos if _MANIFEST.fullmatch(info.base_name)), None)
    if manifest is None or "data" in subfolders:
        return manifest is not None
    # one without rows
    with filesystem.open_input_stream(manifest.path, compression=None) as source:
        return bool(source.read().endswith(_MAGIC))


def is_fragment(path: str) -> bool:
    """Whether a path names a fragment."""
    return _FRAGMENT.fullmatch(path) is not None


def find_fragments(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Names of the fragments of a dataset's newest version.

    Raises:
        InputError: it cannot be read, has files elsewhere, or one of them is missing.
    """
    dataset = _open(filesystem, folder)
    fragments = dataset.get_fragments()
    files = [file for fragment in fragments for file in _files_of(filesystem, folder, fragment)]
    for info in filesystem.get_file_info(files):
        if info.type != pafs.FileType.File:
            missing = shown_path(filesystem, info.path)
            raise InputError(f"{missing}: belongs to the table's newest version, but is not there; restore the table")
    return [f"{folder}/{VERSIONS}/{dataset.version}/fragment-{fragment.fragment_id:06d}" for fragment in fragments]


class Fragment:
    """The rows of a fragment, with the face of `ParquetRows`.

    Attributes:
        schema: its columns, as they are read.
        groups: rows that are read at once.
        files: paths of the files that it consists of.
        described: what tells it from any other: those files, and what its columns are called.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        match = _FRAGMENT.fullmatch(path)
        assert match
        folder, version, number = match.groups()
        dataset = _open(filesystem, folder, int(version))
        fragment = dataset.get_fragment(int(number))
        if fragment is None:
            raise SmecError(f"{shown_path(filesystem, path)}: is not there any more; run again")
        self._path, self._fragment = shown_path(filesystem, path), fragment
        self.schema: pa.Schema = self._scanner().projected_schema
        rows = fragment.count_rows()
        self.groups = tuple(min(GROUP_ROWS, rows - start) for start in range(0, rows, GROUP_ROWS))
        self.files = _files_of(filesystem, folder, fragment)
        self.described = [
            fragment.metadata.to_json(),
            [(field.id(), field.name()) for field in dataset.lance_schema.fields()],
        ]

    def __enter__(self) -> "Fragment":
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def batches(
        self,
        columns: Sequence[str],
        batch_rows: int,
        vector: str = "",
        start: int = 0,
        stop: int | None = None,
        any_row: bool = False,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `ParquetRows.batches`."""
        row, stop = start, sum(self.groups) if stop is None else min(stop, sum(self.groups))
        try:
            scanner = self._scanner(
                columns=list(columns), batch_size=batch_rows, offset=start, limit=stop - start, **_READ_AHEAD
            )
            for batch in scanner.to_batches():
                yield row, self._as_parquet(batch, row, vector, any_row)
                row += len(batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SmecError(
                f"{self._path}: rows from {row} on cannot be read ({_told(error)}); run again, or restore the dataset"
            ) from error

    def _scanner(self, **options: Any) -> Any:
        # else the place of a blob is read in its stead
        return self._fragment.scanner(blob_handling="all_binary", **options)

    def _as_parquet(self, batch: pa.RecordBatch, row: int, vector: str, any_row: bool) -> pa.RecordBatch:
        """Nulls in fixed-size lists are what Parquet can store and pyarrow cannot read of it."""
        for name in batch.schema.names:
            column = batch[name]
            storage = column.storage if isinstance(column, pa.ExtensionArray) else column
            if not pa.types.is_fixed_size_list(storage.type) or not column.null_count:
                continue
            if name != vector:
                raise RowError(self._path, row + first_true(pc.is_null(column)), name, NULL_IN_FIXED)
            if any_row:
                lists = storage.cast(pa.list_(storage.type.value_type))
                batch = batch.set_column(batch.schema.get_field_index(name), name, lists)
        return batch


def _open(filesystem: pafs.FileSystem, folder: str, version: int | None = None) -> "LanceDataset":
    """Opens a version of a dataset, by default the newest.

    Raises:
        InputError: it cannot be opened.
        SmecError: the version was there before.
    """
    shown = shown_path(filesystem, folder)
    try:
        import lance
    except ImportError as error:
        raise InputError(f"{shown}: is a Lance dataset, which needs pylance to be read: {extra('sources')}") from error
    uri, options = _place(filesystem, folder)
    try:
        return lance.dataset(uri, version=version, storage_options=options)
    except (OSError, ValueError) as error:
        if version is not None:
            raise SmecError(
                f"{shown}: version {version} cannot be read ({_told(error)}); run again, which takes the newest"
            ) from error
        raise InputError(f"{shown}: cannot be read as a Lance dataset ({_told(error)}); restore it") from error


def _place(filesystem: pafs.FileSystem, folder: str) -> tuple[str, dict[str, str]]:
    """Where Lance, which has clients of its own, finds a folder, and its options there.

    Raises:
        InputError: it is on a file system that Lance is not read from.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        return folder, {}
    if filesystem.type_name != "py::s3" or not isinstance(filesystem.handler, ToldErrors):
        raise InputError(
            f"{shown_path(filesystem, folder)}: is a Lance dataset, which is read from disks and s3:// only; copy it "
            "there, or write the table as Parquet files"
        )
    # what it is sent to other processes by; without keys both look for them at the same places
    [[told]] = [filesystem.handler.filesystem.__reduce__()[1]]
    endpoint, scheme = told["endpoint_override"], told["scheme"] or "https"
    options = {
        "aws_access_key_id": told["access_key"],
        "aws_secret_access_key": told["secret_key"],
        "aws_session_token": told["session_token"],
        "aws_region": told["region"],
        "aws_endpoint": f"{scheme}://{endpoint}" if endpoint and "://" not in endpoint else endpoint,
        "allow_http": "true" if scheme == "http" else "",
    }
    return f"s3://{quote(folder)}", {key: value for key, value in options.items() if value}


def _files_of(filesystem: pafs.FileSystem, folder: str, fragment: "LanceFragment") -> list[str]:
    """Paths of the files of a fragment.

    Raises:
        InputError: one lies elsewhere.
    """
    metadata, deleted = fragment.metadata.to_json(), fragment.deletion_file()
    if any(
        file["base_id"] is not None for file in [*metadata["files"], metadata["deletion_file"] or {"base_id": None}]
    ):
        shown = shown_path(filesystem, folder)
        raise InputError(f"{shown}: the Lance dataset is a shallow clone, with files elsewhere; make a deep one")
    return [f"{folder}/data/{file['path']}" for file in metadata["files"]] + [f"{folder}/{deleted}"] * bool(deleted)


def _told(error: Exception) -> str:
    """What Lance says, without the lines of its source."""
    return _SOURCE_LINE.sub("", one_line(error))
