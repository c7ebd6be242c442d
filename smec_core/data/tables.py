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
import posixpath
import re
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.data.folders import asking, entries, files_below, listed, not_hidden
from smec_core.data.lance_files import is_fragment
from smec_core.data.table_formats import files_in_force, partition_values
from smec_core.data.uri import open_filesystem, public_uri, shown_path, without_slash
from smec_core.errors import InputError, StoreError

TABLES = ("corpus", "queries")
ENDINGS = (".parquet", ".lance")
SPLITS = ("train", "dev", "test")
QRELS = "qrels"
UNFINISHED = "_unfinished.json"
"""Lies among judgements on an object store while they are replaced, one after another."""
_ALIASES = {"validation": "dev"}
_SPLIT = "|".join((*SPLITS, *_ALIASES))
_QRELS_FILE = re.compile(rf"({_SPLIT})(-\d+(?:-of-\d+)?(?:-[0-9a-f]+)?)?(\.parquet|\.tsv)")
_QRELS_ENDINGS = {".parquet": ".parquet", ".parq": ".parquet", ".pq": ".parquet", ".tsv": ".tsv"}
_QRELS_FOLDER = re.compile(rf"({_SPLIT})(\.parquet|\.lance)?")
NOTE = re.compile(r".+\.md|(readme|license|licence|notice)(\..+)?", re.IGNORECASE)
# what a table may be called by mistake
_PART = r"\d+(-of-\d+)?|train|dev|validation|test"
_NEARLY = re.compile(
    rf"(corpus|queries|qrels)([-_.]({_PART}))?(\.(parquet|parq|pq|tsv|csv|jsonl|txt|lance|delta))?", re.IGNORECASE
)
_DATA_ENDINGS = {".parquet", ".parq", ".pq", ".tsv", ".csv", ".jsonl", ".ndjson", ".arrow", ".feather", ".ipc"}
_DATA_ENDINGS |= {".orc", ".avro", ".lance", ".npy", ".npz", ".safetensors", ".gz", ".bz2", ".zst", ".xz", ".zip"}
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
    folder = shown_path(filesystem, posixpath.dirname(path))
    table = _only(folder, _parquet_forms(filesystem, path), posixpath.basename(path))
    if table is None:
        shown, places = shown_path(filesystem, path), (path, *(f"{path}{ending}" for ending in ENDINGS))
        empty = next((place for place in places if not _is(filesystem, place, pafs.FileType.NotFound)), None)
        missing = "there is no such file or folder" if empty is None else "no Parquet file there"
        forms = "" if path.endswith(ENDINGS) else f"{shown}.parquet or "
        raise InputError(f"{shown_path(filesystem, empty or path)}: {missing}; expected {forms}{shown}/*.parquet")
    return table.paths


def _is(filesystem: pafs.FileSystem, path: str, kind: pafs.FileType) -> bool:
    """Whether this is there, or nothing; what may not be asked for is not known to be either."""
    with suppress(StoreError):
        return bool(filesystem.get_file_info(path).type == kind)
    return False


def check_dataset(filesystem: pafs.FileSystem, root: str) -> None:
    """Refuses what is no folder where that of a dataset is asked for.

    Raises:
        InputError: it is a file, or a folder within a dataset, or there is nothing.
    """
    shown, wanted = shown_path(filesystem, root), "give the folder that holds corpus, queries and qrels"
    if _is(filesystem, root, pafs.FileType.NotFound):
        raise InputError(f"{shown}: there is no such folder; {wanted}")
    if _is(filesystem, root, pafs.FileType.File):
        raise InputError(f"{shown}: is a file; {wanted}")
    parent, name = posixpath.split(root)
    if name in (*TABLES, QRELS) and all(_is_there(filesystem, f"{parent}/{table}") for table in TABLES):
        raise InputError(f"{shown}: is the {name} of a dataset; {wanted}: {shown_path(filesystem, parent)}")


def _is_there(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a table lies there in one of its forms, as far as may be asked."""
    places = (path, *(f"{path}{ending}" for ending in ENDINGS))
    return not all(_is(filesystem, place, pafs.FileType.NotFound) for place in places)


def find_values(filesystem: pafs.FileSystem, path: str, file: str) -> dict[str, dict[str, pa.Scalar]]:
    """Of the table of such a `path` the columns that its files do not hold, by file: what each is in all rows of it.

    Args:
        filesystem: where the table lies.
        path: as `find_table` takes it.
        file: one of the files.

    Raises:
        InputError: the table cannot be read.
    """
    places = (path, *(f"{path}{ending}" for ending in ENDINGS))
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
    in_data = entries(filesystem, posixpath.join(root, "data"))
    found[f"data/{kind}-*.parquet"] = [info.path for info in in_data if shards.fullmatch(info.base_name)]
    shown = shown_path(filesystem, root)
    table = _only(shown, found, kind)
    if table is None:
        forms = f"{kind}.jsonl, {kind}.parquet, {kind}/*.parquet or data/{kind}-*.parquet"
        raise InputError(f"{shown}: no {kind} there; expected {forms}")
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
    infos = listed(filesystem, folder)
    if not unfinished and any(info.base_name == UNFINISHED for info in infos):
        raise InputError(
            f"{shown_path(filesystem, folder)}: smec judge has not finished these judgements; run it again"
        )
    for info in not_hidden(infos):
        name, is_folder = info.base_name, info.type == pafs.FileType.Directory
        match = (_QRELS_FOLDER if is_folder else _QRELS_FILE).fullmatch(name)
        if match is None:
            if is_folder:
                _refuse_data(filesystem, info, "")
            elif not NOTE.fullmatch(name):
                raise InputError(f"{shown_path(filesystem, info.path)}: fits no split; {_meant(name)}")
            continue
        split, form = _ALIASES.get(match[1], match[1]), name
        if is_folder:
            [(form, paths)] = _form_of(name, _files_in(filesystem, info.path)).items()
            if not paths:
                shown = shown_path(filesystem, info.path)
                raise InputError(f"{shown}: holds no Parquet file; add the judgements, or remove the folder")
        elif match[2]:
            form, paths = f"{match[1]}-*{match[3]}", [info.path]
        else:
            paths = [info.path]
        found[split].setdefault(form, []).extend(paths)
    shown = shown_path(filesystem, folder)
    tables = {split: _only(shown, forms, split) for split, forms in found.items()}
    return {split: table for split, table in tables.items() if table is not None}


def check_names(filesystem: pafs.FileSystem, root: str) -> None:
    """Refuses what lies in a dataset's folder under nearly the name of a table.

    Raises:
        InputError: such a name, as Corpus, corpus-00000-of-00002.parquet or qrels.tsv.
    """
    # lines of JSON are text, which may lie beside its vectors
    known = {QRELS, *(f"{name}{ending}" for name in TABLES for ending in ("", *ENDINGS, ".jsonl"))}
    for info in entries(filesystem, root):
        match = _NEARLY.fullmatch(info.base_name)
        if match and info.base_name not in known:
            name = match[1].lower()
            forms = "qrels/train.parquet" if name == QRELS else f"{name}.parquet or {name}/*.parquet"
            shown = shown_path(filesystem, info.path)
            raise InputError(f"{shown}: would not be read; name it {forms}, or move it away")


def _parquet_forms(filesystem: pafs.FileSystem, path: str) -> dict[str, list[str]]:
    """Files of the file or the folder `path`, and of those with an ending, by what these are called."""
    found: dict[str, list[str]] = {}
    refused: OSError | None = None
    for place in (path, *(f"{path}{ending}" for ending in ENDINGS)):
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
    infos = listed(filesystem, folder)
    subfolders = {info.base_name for info in infos if info.type == pafs.FileType.Directory}
    with asking(filesystem, folder):
        if (in_force := files_in_force(filesystem, folder, subfolders)) is not None:
            for info in not_hidden(infos) if any(map(is_fragment, in_force)) else []:
                # Lance's own folders, the hidden ones apart
                if info.base_name not in ("data", "tree"):
                    _refuse_data(filesystem, info, "is no part of the Lance dataset; move it away")
            return in_force
    _refuse_dataset(filesystem, folder, [info.base_name for info in infos])
    for info in not_hidden(infos):
        if info.type == pafs.FileType.File and info.base_name.endswith(".parquet"):
            paths.append(info.path)
        else:
            _refuse_data(filesystem, info, "would not be read; give it a name that ends in .parquet, or move it away")
    return paths


def _refuse_dataset(filesystem: pafs.FileSystem, folder: str, names: list[str]) -> None:
    """Refuses the folder of a dataset where that of one table is asked for: its tables would be read as one.

    Raises:
        InputError: it is a dataset.
    """
    found = {kind for kind in (*TABLES, QRELS) for ending in ("", *ENDINGS) if f"{kind}{ending}" in names}
    if TABLES[0] in found and len(found) > 1:
        shown = shown_path(filesystem, folder)
        raise InputError(f"{shown}: is a dataset, and one table of it is wanted; give {shown}/{TABLES[0]}")


def _refuse_data(filesystem: pafs.FileSystem, info: pafs.FileInfo, why: str) -> None:
    """Refuses what could be data that was meant to be read; notes, logs and the like may stay.

    Raises:
        InputError: it could be.
    """
    if info.type == pafs.FileType.Directory:
        for one in files_below(filesystem, info.path):
            if _is_data(filesystem, one):
                raise InputError(
                    f"{shown_path(filesystem, one.path)}: lies in a subfolder, and subfolders are not read; move it "
                    "up, or begin the subfolder's name with _"
                )
    elif info.type != pafs.FileType.File or _is_data(filesystem, info):
        raise InputError(f"{shown_path(filesystem, info.path)}: {why}")


def _is_data(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> bool:
    if posixpath.splitext(info.base_name)[1].lower() in _DATA_ENDINGS:
        return True
    if info.size < len(_PARQUET_MAGIC[0]):
        return False
    with asking(filesystem, info.path), filesystem.open_input_file(info.path) as content:
        return content.read(len(_PARQUET_MAGIC[0])) in _PARQUET_MAGIC
    return False


def _meant(name: str) -> str:
    """What to call a file of judgements, or how to write it."""
    stem, ending = posixpath.splitext(name.lower())
    near = difflib.get_close_matches(stem.partition(".")[0], [*SPLITS, *_ALIASES], n=1, cutoff=0.7)
    if ending not in _QRELS_ENDINGS:
        meant = near[0] if near else SPLITS[0]
        return f"write it as Parquet, {meant}.parquet, or separated by tabs, {meant}.tsv"
    if near:
        return f"did you mean {near[0]}{_QRELS_ENDINGS[ending]}?"
    return "name it train, dev (or validation) or test, with .parquet or .tsv"


MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files pass over names that begin with an underscore."""
EARLIER_MANIFEST = "manifest.json"
"""The name that earlier versions gave it."""


def find_manifest(filesystem: pafs.FileSystem, folder: str) -> str | None:
    """Path of the manifest in a folder, by its name or its earlier one; None where there is none."""
    infos = filesystem.get_file_info([f"{folder}/{name}" for name in (MANIFEST, EARLIER_MANIFEST)])
    return next((info.path for info in infos if info.type == pafs.FileType.File), None)


def refuse_draft(uri: str) -> None:
    """Refuses a dataset that `smec ingest` still writes.

    Raises:
        InputError: it is one.
    """
    if _is_draft(*open_filesystem(without_slash(uri))):
        raise InputError(f"{public_uri(uri)}: is not finished; run `smec ingest` again, which goes on with it")


def _is_draft(filesystem: pafs.FileSystem, root: str) -> bool:
    """Whether `smec ingest` still writes a dataset: on an object store it does so in place, beside its plan."""
    if find_manifest(filesystem, root) is not None:
        return False
    try:
        return bool(filesystem.get_file_info(f"{root}.partial/plan.json").is_file)
    except OSError:
        # a role that may not read beside this dataset cannot have begun one here
        return False
