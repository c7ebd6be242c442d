"""Tables that keep a log of their files, Delta Lake, Iceberg and Lance: of which the newest version consists.

Log and metadata are read through the file system that the folder was opened on, so what opens a folder of Parquet
files opens such a table there, too, with the same credentials. What the Parquet files alone do not tell (rows that are
deleted by other files, columns under other names) is refused.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from smec_core.data.lance_files import find_fragments, is_fragment, is_lance
from smec_core.data.uri import shown_path
from smec_core.errors import InputError, SmecError, extra, one_line
from smec_core.temporary import temporary_folder

if TYPE_CHECKING:
    from pyiceberg.table.metadata import TableMetadata

_DELTA_LOG, _ICEBERG_METADATA = "_delta_log", "metadata"
_DELTA_FEATURES = {"columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "typeWidening-preview"}
_DELTA_FEATURES |= {"v2Checkpoint", "vacuumProtocolCheck"}
"""What a Delta table may ask of its readers: of those that matter here, each table is looked at."""
_DELTA_VERSION = re.compile(r"(\d{20})\..+")
_ICEBERG_VERSION = re.compile(r"v?(\d+)(-.+)?(\.gz)?\.metadata\.json(\.gz)?")
_ICEBERG_HINT = "version-hint.text"
_GZIP = (".gz.metadata.json", ".metadata.json.gz")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_SCHEMES = {"local": ("", "file"), "py::s3": ("s3", "s3a", "s3n"), "py::gcs": ("gs",)}
"""What a place on a file system may be called in a table."""


def files_in_force(filesystem: pafs.FileSystem, folder: str, subfolders: Collection[str]) -> list[str] | None:
    """The files of a table's newest version.

    Args:
        filesystem: where the folder lies.
        folder: that may be such a table.
        subfolders: names of the folders in it, also of hidden ones.

    Returns:
        Paths of Parquet files or names of fragments, sorted; None where the folder is no such table.

    Raises:
        InputError: the table needs more than its Parquet files to be read, a file is missing, or so is the package
            that knows the format.
    """
    shown = shown_path(filesystem, folder)
    if _DELTA_LOG in subfolders:
        paths = _delta_files(filesystem, folder)["path"].to_pylist()
    elif _ICEBERG_METADATA in subfolders and (versions := _iceberg_versions(filesystem, folder)):
        paths = _iceberg_files(filesystem, folder, versions)
    elif is_lance(filesystem, folder, subfolders):
        paths = find_fragments(filesystem, folder)
    elif ".hoodie" in subfolders:
        raise InputError(f"{shown}: is a Hudi table, which is not read; write the table as Parquet files")
    else:
        return None
    if not paths:
        raise InputError(f"{shown}: the newest version of the table holds no rows")
    for info in filesystem.get_file_info([path for path in paths if not is_fragment(path)]):
        if info.type != pafs.FileType.File:
            missing = shown_path(filesystem, info.path)
            raise InputError(f"{missing}: belongs to the table's newest version, but is not there; restore the table")
    return sorted(paths)


def _needs(shown: str, what: str, package: str) -> InputError:
    return InputError(f"{shown}: is {what}, which needs {package} to be read: {extra('sources')}")


def partition_values(filesystem: pafs.FileSystem, folder: str) -> dict[str, dict[str, pa.Scalar]]:
    """The columns by which a Delta table is partitioned, which its files do not hold: their values, by file.

    Raises:
        InputError: as `files_in_force`.
    """
    if filesystem.get_file_info(f"{folder}/{_DELTA_LOG}").type != pafs.FileType.Directory:
        return {}
    files = _delta_files(filesystem, folder)
    if "partition" not in files.column_names:
        return {}
    fields = list(files.schema.field("partition").type)
    return {
        path: {field.name: value[field.name] for field in fields}
        for path, value in zip(files["path"].to_pylist(), files["partition"], strict=True)
    }


def _delta_files(filesystem: pafs.FileSystem, folder: str) -> pa.Table:
    """The files in force with what the log says of them."""
    shown = shown_path(filesystem, folder)
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise _needs(shown, "a Delta table", "deltalake") from error
    with temporary_folder() as made:
        copy = str(made)
        try:
            _copy_log(filesystem, f"{folder}/{_DELTA_LOG}", Path(copy, _DELTA_LOG))
            table = DeltaTable(copy)
            _refuse_delta(shown, table, DeltaError)
            files = pa.table(table.get_add_actions())
        except SmecError:
            raise
        except (DeltaError, OSError, ValueError) as error:
            # lines of a backtrace may follow
            told = str(error).partition("\n")[0].replace(copy, shown)
            raise InputError(f"{shown}: cannot be read as a Delta table ({told}); fix or restore the table") from error
    names: list[str] = files["path"].to_pylist()
    if far := next((name for name in names if name.startswith("/") or _SCHEME.match(name)), None):
        raise InputError(f"{shown}: the table is a shallow clone, with files elsewhere ({far}); make a deep one")
    # of the names in the log, which are escaped as URIs are; those of folders may be escaped once more, on disk too
    paths = pa.array([f"{folder}/{unquote(name)}" for name in names], pa.string())
    return files.set_column(files.column_names.index("path"), "path", paths)


def _copy_log(filesystem: pafs.FileSystem, log: str, copy: Path) -> None:
    """Copies what says which files are in force, from the last checkpoint on.

    deltalake cannot read through a file system of pyarrow, and would need credentials of its own.
    """
    # before the files are listed: a checkpoint that is made meanwhile comes with files of its own
    hint = _last_checkpoint(filesystem, log)
    infos = {info.base_name: info for info in filesystem.get_file_info(pafs.FileSelector(log))}
    versions = {name: int(match[1]) for name in infos if (match := _DELTA_VERSION.fullmatch(name))}
    start = hint if any(hint == version and ".checkpoint." in name for name, version in versions.items()) else 0
    names = [name for name, version in versions.items() if version >= start]
    if hint and start:
        names.append("_last_checkpoint")
    if "_sidecars" in infos:
        sidecars = filesystem.get_file_info(pafs.FileSelector(f"{log}/_sidecars"))
        names += [f"_sidecars/{info.base_name}" for info in sidecars]
        (copy / "_sidecars").mkdir(parents=True)
    copy.mkdir(exist_ok=True)

    def fetch(name: str) -> None:
        with filesystem.open_input_stream(f"{log}/{name}", compression=None) as source:
            (copy / name).write_bytes(source.read())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, names))


def _last_checkpoint(filesystem: pafs.FileSystem, log: str) -> int:
    """Version of the last checkpoint; 0 where that is not known, since this is no more than a hint."""
    try:
        with filesystem.open_input_stream(f"{log}/_last_checkpoint", compression=None) as source:
            return int(json.loads(source.read())["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def _refuse_delta(shown: str, table: Any, delta_error: type[Exception]) -> None:
    features = set(table.protocol().reader_features or ())
    if unknown := sorted(features - _DELTA_FEATURES):
        raise InputError(f"{shown}: the Delta table asks its readers for {unknown[0]}; rewrite it without that feature")
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise InputError(
            f"{shown}: the Delta table has column mapping, so that its files may call columns otherwise; write it "
            "anew without (delta.columnMapping.mode)"
        )
    if "deletionVectors" in features:
        try:
            deleted = pa.table(table.deletion_vectors()).num_rows
        except delta_error:
            # they are files that were not copied
            deleted = 1
        if deleted:
            raise InputError(
                f"{shown}: the Delta table has deletion vectors, so that its files hold rows that are deleted; "
                "rewrite them (REORG TABLE ... APPLY (PURGE))"
            )


def _iceberg_versions(filesystem: pafs.FileSystem, folder: str) -> dict[str, pafs.FileInfo]:
    """Files of metadata, by name; none where the folder `metadata` is another's."""
    infos = filesystem.get_file_info(pafs.FileSelector(f"{folder}/{_ICEBERG_METADATA}"))
    found = {info.base_name: info for info in infos if info.type == pafs.FileType.File}
    return found if any(map(_ICEBERG_VERSION.fullmatch, found)) else {}


def _newest_version(filesystem: pafs.FileSystem, folder: str, infos: dict[str, pafs.FileInfo]) -> str:
    """Path of the newest metadata: what the hint names, or a later one, else that with the highest number."""
    shown, named = shown_path(filesystem, f"{folder}/{_ICEBERG_METADATA}"), defaultdict(list)
    for name in infos:
        if match := _ICEBERG_VERSION.fullmatch(name):
            named[int(match[1])].append(name)
    number = max(named)
    if _ICEBERG_HINT in infos:
        path = infos[_ICEBERG_HINT].path
        with filesystem.open_input_stream(path, compression=None) as source:
            hint = source.read().decode(errors="replace").strip()
        if not hint.isdecimal():
            name = f"{hint.removesuffix('.metadata.json')}.metadata.json"
            if name not in infos:
                raise InputError(f"{shown}/{_ICEBERG_HINT}: names {hint!r}, which is not there; restore the table")
            return str(infos[name].path)
        number = int(hint)
        # as Iceberg itself goes on: it writes the hint after the version
        while number + 1 in named:
            number += 1
        if number not in named:
            raise InputError(f"{shown}/{_ICEBERG_HINT}: names version {hint}, which is not there; restore the table")
    elif len(_uuids(filesystem, [infos[name].path for some in named.values() for name in some])) > 1:
        raise InputError(
            f"{shown}: holds metadata of several tables, as of one that was dropped; remove what "
            f"is not in force, or write the name of the newest version into {_ICEBERG_HINT} there"
        )
    if len(named[number]) > 1:
        several = " and ".join(sorted(named[number]))
        raise InputError(
            f"{shown}: {several}: only the catalog knows which is in force; write the name of "
            f"that one into {_ICEBERG_HINT} there"
        )
    return str(infos[named[number][0]].path)


def _uuids(filesystem: pafs.FileSystem, paths: list[str]) -> set[str]:
    """The tables that some files of metadata are of."""

    def uuid_of(path: str) -> str:
        with filesystem.open_input_stream(path, compression="gzip" if path.endswith(_GZIP) else None) as source:
            return str(json.loads(source.read()).get("table-uuid"))

    try:
        with ThreadPoolExecutor(8) as pool:
            return set(pool.map(uuid_of, paths))
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, SmecError):
            raise
        shown = shown_path(filesystem, paths[0])
        raise InputError(f"{shown}, or one beside it: cannot be read ({one_line(error)}); restore it") from error


def _iceberg_files(filesystem: pafs.FileSystem, folder: str, infos: dict[str, pafs.FileInfo]) -> list[str]:
    newest, shown = _newest_version(filesystem, folder, infos), shown_path(filesystem, folder)
    try:
        from pyiceberg.catalog.noop import NoopCatalog
        from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
        from pyiceberg.serializers import FromInputFile
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise _needs(shown, "an Iceberg table", "pyiceberg") from error

    class OpenedIO(PyArrowFileIO):
        """Reads on the file system that the folder was opened on."""

        def new_input(self, location: str) -> PyArrowFile:
            return PyArrowFile(location, _place(filesystem, folder, location, metadata), filesystem)

    try:
        metadata = FromInputFile.table_metadata(PyArrowFile(newest, newest, filesystem))
        # as StaticTable.from_metadata does it, which would open a file system of its own
        table = StaticTable(("static", newest), metadata, newest, OpenedIO(), NoopCatalog("static"))
        tasks = list(table.scan().plan_files())
    except SmecError:
        raise
    except Exception as error:
        # of many kinds: pydantic's, of Avro, of features that pyiceberg has not
        if "equality deletes" in str(error):
            raise _has_deletes(shown) from error
        raise InputError(
            f"{shown_path(filesystem, newest)}: cannot be read as an Iceberg table ({one_line(error)})"
        ) from error
    for task in tasks:
        if task.delete_files:
            raise _has_deletes(shown)
        if task.file.file_format != "PARQUET":
            raise InputError(
                f"{task.file.file_path}: is {task.file.file_format.value}, and the table's files must be Parquet; "
                "rewrite it (write.format.default)"
            )
    paths = [_place(filesystem, folder, task.file.file_path, metadata) for task in tasks]
    _refuse_renamed(filesystem, paths, metadata)
    return paths


def _has_deletes(shown: str) -> InputError:
    return InputError(
        f"{shown}: the Iceberg table has delete files, so that its data files hold rows that are deleted; rewrite "
        "them (CALL system.rewrite_data_files, with delete-file-threshold 1)"
    )


def _place(filesystem: pafs.FileSystem, folder: str, location: str, metadata: "TableMetadata") -> str:
    """Path of a file that a table names in full; a table that was copied or mounted as a whole is read where it lies.

    Raises:
        InputError: it lies neither in the table's folder nor on its file system.
    """
    (scheme, path), (_, base) = _split(location), _split(metadata.location.rstrip("/"))
    if path.startswith(f"{base}/"):
        return folder + path.removeprefix(base)
    if scheme in _SCHEMES.get(filesystem.type_name, ()):
        return path
    raise InputError(
        f"{shown_path(filesystem, folder)}: the Iceberg table has a file elsewhere ({location}); rewrite it into the "
        "table's folder"
    )


def _split(location: str) -> tuple[str, str]:
    match = _SCHEME.match(location)
    return (match[1].lower(), location[match.end() :]) if match else ("", location)


def _refuse_renamed(filesystem: pafs.FileSystem, paths: list[str], metadata: "TableMetadata") -> None:
    """Refuses files that call a column otherwise than the table does: in Iceberg a column is its number.

    Raises:
        InputError: there is one.
    """
    numbers = {field.name: field.field_id for field in metadata.schema().fields}
    names = {number: name for name, number in numbers.items()}

    def differs(name: str, number: int) -> bool:
        return (names.get(number, name), numbers.get(name, number)) != (name, number)

    if not any(differs(field.name, field.field_id) for schema in metadata.schemas for field in schema.fields):
        return
    with ThreadPoolExecutor(8) as pool:
        schemas = list(pool.map(lambda path: pq.read_schema(path, filesystem=filesystem), paths))
    for path, schema in zip(paths, schemas, strict=True):
        for field in schema:
            number = int((field.metadata or {}).get(b"PARQUET:field_id", -1))
            # files that were not written by Iceberg have no numbers, and are read by name there, too
            if number >= 0 and differs(field.name, number):
                raise InputError(
                    f"{shown_path(filesystem, path)}: column {field.name} was written before the table's columns were "
                    "renamed; rewrite the file (CALL system.rewrite_data_files, with rewrite-all true)"
                )
