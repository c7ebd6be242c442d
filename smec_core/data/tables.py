"""Where the tables of a folder lie: one resolver for corpus, queries and every split, of vectors and of text.

    corpus/*.parquet or corpus.parquet (a file, or a folder of files); queries likewise
    qrels/train.parquet, qrels/train/*.parquet, qrels/train-00000-of-00001.parquet or qrels/train.tsv; dev (or
    validation) and test likewise
    text also: corpus.jsonl, data/corpus-*.parquet

A folder that is a Delta or an Iceberg table or a Lance dataset (also corpus.lance) stands for the files of its newest
version.

Anything else that could be data is refused by name: nothing is skipped silently. Names that begin with `.` or `_` are
ignored, as in Spark and Hive.
"""

import difflib
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.data.lance_files import is_fragment
from smec_core.data.table_formats import files_in_force, partition_values
from smec_core.errors import InputError, SmecError, StoreError, one_line

TABLES = ("corpus", "queries")
_ENDINGS = (".parquet", ".lance")
SPLITS = ("train", "dev", "test")
QRELS = "qrels"
UNFINISHED = "_unfinished.json"
"""Lies among judgements on an object store while they are replaced, one after another."""
_ALIASES = {"validation": "dev"}
_SPLIT = "|".join((*SPLITS, *_ALIASES))
_QRELS_FILE = re.compile(rf"({_SPLIT})(-\d+(?:-of-\d+)?(?:-[0-9a-f]+)?)?(\.parquet|\.tsv)")
_QRELS_FOLDER = re.compile(rf"({_SPLIT})(\.parquet|\.lance)?")
_NOTE = re.compile(r".+\.md|(readme|license|licence|notice)(\..+)?", re.IGNORECASE)
# what a table may be called by mistake
_PART = r"\d+(-of-\d+)?|train|dev|validation|test"
_NEARLY = re.compile(
    rf"(corpus|queries|qrels)([-_.]({_PART}))?(\.(parquet|parq|pq|tsv|csv|jsonl|txt|lance|delta))?", re.IGNORECASE
)
_DATA_ENDINGS = {".parquet", ".parq", ".pq", ".tsv", ".csv", ".jsonl", ".ndjson", ".arrow", ".feather", ".ipc"}
_DATA_ENDINGS |= {".orc", ".avro", ".lance", ".npy", ".npz", ".safetensors", ".gz", ".bz2", ".zst", ".xz", ".zip"}
_LOG_ENDINGS = (".parquet", ".csv", ".jsonl")
_PARQUET_MAGIC = (b"PAR1", b"PARE")


class Table(NamedTuple):
    """A table that was found: the form it has, and its files in the order in which their rows count."""

    form: str
    paths: list[str]


def find_table(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Files of an embedding table: of the folder `path`, or of `path`.parquet, a file or a folder; or the file `path`.

    Raises:
        InputError: nothing there, more than one of these at once, or data that would not be read.
    """
    table = _only(posixpath.dirname(path), _parquet_forms(filesystem, path), posixpath.basename(path))
    if table is None:
        raise InputError(f"{path}: no Parquet file there; expected {path}.parquet or {path}/*.parquet")
    return table.paths


def find_values(filesystem: pafs.FileSystem, path: str, file: str) -> dict[str, dict[str, pa.Scalar]]:
    """Of the table of such a `path` the columns that its files do not hold, by file: what each is in all rows of it.

    Args:
        filesystem: where the table lies.
        path: as `find_table` takes it.
        file: one of the files.

    Raises:
        InputError: the table cannot be read.
    """
    places = (path, *(f"{path}{ending}" for ending in _ENDINGS))
    folder = next((place for place in places if file.startswith(f"{place}/")), None)
    return {} if folder is None else partition_values(filesystem, folder)


def find_texts(filesystem: pafs.FileSystem, root: str, kind: str) -> Table:
    """The text of the corpus or of the queries, as Parquet or as lines of JSON.

    Raises:
        InputError: nothing there, more than one of the forms, or data that would not be read.
    """
    lines = filesystem.get_file_info(posixpath.join(root, f"{kind}.jsonl"))
    found = {lines.base_name: [lines.path]} if lines.is_file else {}
    found |= _parquet_forms(filesystem, posixpath.join(root, kind))
    shards = re.compile(rf"{kind}-.+\.parquet")
    # the other table lies there, too
    in_data = _entries(filesystem, posixpath.join(root, "data"))
    found[f"data/{kind}-*.parquet"] = [info.path for info in in_data if shards.fullmatch(info.base_name)]
    table = _only(root, found, kind)
    if table is None:
        forms = f"{kind}.jsonl, {kind}.parquet, {kind}/*.parquet or data/{kind}-*.parquet"
        raise InputError(f"{root}: no {kind} there; expected {forms}")
    return table


def find_qrels(filesystem: pafs.FileSystem, root: str, unfinished: bool = False) -> dict[str, Table]:
    """Judgements of every split that is there, in the order train, dev, test.

    Args:
        filesystem: where the dataset lies.
        root: its folder.
        unfinished: find also those that are being replaced.

    Raises:
        InputError: a split in more than one form, a file that fits no split, or judgements that are being replaced.
    """
    folder = posixpath.join(root, QRELS)
    found: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    infos = _listed(filesystem, folder)
    if not unfinished and any(info.base_name == UNFINISHED for info in infos):
        raise InputError(f"{folder}: smec judge has not finished these judgements; run it again")
    for info in _not_hidden(infos):
        name, is_folder = info.base_name, info.type == pafs.FileType.Directory
        match = (_QRELS_FOLDER if is_folder else _QRELS_FILE).fullmatch(name)
        if match is None:
            if is_folder:
                _refuse_data(filesystem, info, "")
            elif not _NOTE.fullmatch(name):
                raise InputError(f"{info.path}: fits no split; {_meant(name)}")
            continue
        split, form = _ALIASES.get(match[1], match[1]), name
        if is_folder:
            [(form, paths)] = _form_of(name, _files_in(filesystem, info.path)).items()
            if not paths:
                raise InputError(f"{info.path}: holds no Parquet file; add the judgements, or remove the folder")
        elif match[2]:
            form, paths = f"{match[1]}-*{match[3]}", [info.path]
        else:
            paths = [info.path]
        found[split].setdefault(form, []).extend(paths)
    tables = {split: _only(folder, forms, split) for split, forms in found.items()}
    return {split: table for split, table in tables.items() if table is not None}


def find_log(filesystem: pafs.FileSystem, path: str) -> Table:
    """The files of a log: of the folder `path`, or that file; all Parquet, all CSV or all lines of JSON.

    Returns:
        Its form is the ending: .parquet, .csv or .jsonl; of text files also those that end in .gz.

    Raises:
        InputError: nothing there, files of several kinds, or data that would not be read.
    """
    with _asking(path):
        info = filesystem.get_file_info(path)
    forms = ", ".join(_LOG_ENDINGS)
    if info.type == pafs.FileType.File:
        if not (ending := _log_ending(path)):
            raise InputError(f"{path}: is no file of a log; its name has to end in one of {forms}")
        return Table(ending, [path])
    infos = _listed(filesystem, path)
    subfolders = {one.base_name for one in infos if one.type == pafs.FileType.Directory}
    with _asking(path):
        if (in_force := files_in_force(filesystem, path, subfolders)) is not None:
            return Table(".parquet", in_force)
    found: dict[str, list[str]] = {}
    for one in _not_hidden(infos):
        if one.type == pafs.FileType.File and (ending := _log_ending(one.base_name)):
            found.setdefault(ending, []).append(one.path)
        else:
            _refuse_data(filesystem, one, f"would not be read; files of a log end in one of {forms}")
    if not found:
        raise InputError(f"{path}: no file of a log there; expected a file, or a folder of files, that end in {forms}")
    if len(found) > 1:
        one, other = (found[ending][0] for ending in sorted(found)[:2])
        raise InputError(f"{path}: holds {one} and {other}; leave files of one kind there")
    [(ending, paths)] = found.items()
    return Table(ending, sorted(paths))


def _log_ending(name: str) -> str | None:
    """The ending of a log's file, without .gz; None where it is none."""
    stem = name.removesuffix(".gz")
    ending = next((ending for ending in _LOG_ENDINGS if stem.endswith(ending)), None)
    return None if ending == ".parquet" and stem != name else ending


def check_names(filesystem: pafs.FileSystem, root: str) -> None:
    """Refuses what lies in a dataset's folder under nearly the name of a table.

    Raises:
        InputError: such a name, as Corpus, corpus-00000-of-00002.parquet or qrels.tsv.
    """
    # lines of JSON are text, which may lie beside its vectors
    known = {QRELS, *(f"{name}{ending}" for name in TABLES for ending in ("", *_ENDINGS, ".jsonl"))}
    for info in _entries(filesystem, root):
        match = _NEARLY.fullmatch(info.base_name)
        if match and info.base_name not in known:
            name = match[1].lower()
            forms = "qrels/train.parquet" if name == QRELS else f"{name}.parquet or {name}/*.parquet"
            raise InputError(f"{info.path}: would not be read; name it {forms}, or move it away")


def _parquet_forms(filesystem: pafs.FileSystem, path: str) -> dict[str, list[str]]:
    """Files of the file or the folder `path`, and of those with an ending, by what these are called."""
    found: dict[str, list[str]] = {}
    refused: OSError | None = None
    for place in (path, *(f"{path}{ending}" for ending in _ENDINGS)):
        name = posixpath.basename(place)
        try:
            kind = filesystem.get_file_info(place).type
        except OSError as error:
            # a role may list a folder without the right to ask for a key beside it or of its name
            refused = refused or error
            with suppress(StoreError):
                found |= _form_of(name, _files_in(filesystem, place))
            continue
        if kind == pafs.FileType.File:
            found[name] = [place]
        elif kind == pafs.FileType.Directory:
            found |= _form_of(name, _files_in(filesystem, place))
    if refused is not None and not any(found.values()):
        raise refused
    return found


def _form_of(folder: str, paths: list[str]) -> dict[str, list[str]]:
    """The files of a folder by what they are called together."""
    return {folder if any(map(is_fragment, paths)) else f"{folder}/*.parquet": paths}


def _only(folder: str, found: dict[str, list[str]], what: str) -> Table | None:
    """The one form that has files.

    Raises:
        InputError: several have.
    """
    present = [Table(form, sorted(paths)) for form, paths in found.items() if paths]
    if len(present) > 1:
        forms = " and ".join(table.form for table in present)
        raise InputError(f"{folder}: holds {forms}; leave one of them there, to be the {what}")
    return present[0] if present else None


def _files_in(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """The Parquet files of a folder, or of the newest version of the table that it is, sorted.

    Raises:
        InputError: data that would not be read: in a subfolder, or under another name; or a table that cannot be.
    """
    paths = []
    infos = _listed(filesystem, folder)
    subfolders = {info.base_name for info in infos if info.type == pafs.FileType.Directory}
    with _asking(folder):
        if (in_force := files_in_force(filesystem, folder, subfolders)) is not None:
            return in_force
    for info in _not_hidden(infos):
        if info.type == pafs.FileType.File and info.base_name.endswith(".parquet"):
            paths.append(info.path)
        else:
            _refuse_data(filesystem, info, "would not be read; give it a name that ends in .parquet, or move it away")
    return paths


def _refuse_data(filesystem: pafs.FileSystem, info: pafs.FileInfo, why: str) -> None:
    """Refuses what could be data that was meant to be read; notes, logs and the like may stay.

    Raises:
        InputError: it could be.
    """
    if info.type == pafs.FileType.Directory:
        for one in _files_below(filesystem, info.path):
            if _is_data(filesystem, one):
                raise InputError(
                    f"{one.path}: lies in a subfolder, and subfolders are not read; move it up, or begin the "
                    f"subfolder's name with _"
                )
    elif info.type != pafs.FileType.File or _is_data(filesystem, info):
        raise InputError(f"{info.path}: {why}")


def _files_below(filesystem: pafs.FileSystem, folder: str) -> Iterator[pafs.FileInfo]:
    """Files of a folder, and then those of its subfolders."""
    infos = _entries(filesystem, folder)
    yield from (info for info in infos if info.type == pafs.FileType.File)
    for info in infos:
        if info.type == pafs.FileType.Directory:
            yield from _files_below(filesystem, info.path)


def _is_data(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> bool:
    if posixpath.splitext(info.base_name)[1].lower() in _DATA_ENDINGS:
        return True
    if info.size < len(_PARQUET_MAGIC[0]):
        return False
    with _asking(info.path), filesystem.open_input_file(info.path) as content:
        return content.read(len(_PARQUET_MAGIC[0])) in _PARQUET_MAGIC
    return False


@contextmanager
def _asking(path: str) -> Iterator[None]:
    """Turns what a local file system raises into an InputError, as object stores do by themselves."""
    try:
        yield
    except SmecError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error


def _entries(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """What lies in a folder, sorted, but for hidden names; nothing where there is no such folder.

    Raises:
        InputError: the folder cannot be listed, or has a broken link.
    """
    return _not_hidden(_listed(filesystem, folder))


def _not_hidden(infos: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    return [info for info in infos if not _is_hidden(info.base_name)]


def _listed(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """What lies in a folder, sorted, also under hidden names; nothing where there is no such folder.

    Raises:
        InputError: the folder cannot be listed, or has a broken link.
    """
    with _asking(folder):
        infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        if isinstance(filesystem, pafs.LocalFileSystem) and os.path.isdir(folder):
            # pyarrow skips broken links
            for path in sorted(posixpath.join(folder, name) for name in os.listdir(folder) if not _is_hidden(name)):
                if os.path.islink(path) and not os.path.exists(path):
                    raise InputError(f"{path}: is a broken link; fix or remove it")
    return sorted(infos, key=lambda info: str(info.path))


def _meant(name: str) -> str:
    """What to call a file of judgements."""
    near = difflib.get_close_matches(name.lower().partition(".")[0], [*SPLITS, *_ALIASES], n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}.parquet?"
    return "name it train, dev (or validation) or test, with .parquet or .tsv"


def _is_hidden(name: str) -> bool:
    # the last is on every ext4 volume
    return name.startswith((".", "_")) or name == "lost+found"


MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files pass over names that begin with an underscore."""
EARLIER_MANIFEST = "manifest.json"
"""The name that earlier versions gave it."""


def find_manifest(filesystem: pafs.FileSystem, folder: str) -> str | None:
    """Path of the manifest in a folder, by its name or its earlier one; None where there is none."""
    infos = filesystem.get_file_info([f"{folder}/{name}" for name in (MANIFEST, EARLIER_MANIFEST)])
    return next((info.path for info in infos if info.type == pafs.FileType.File), None)
