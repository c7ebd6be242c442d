"""Where a job may not write: among the files of the data that it reads, and over files that have checksums."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow.fs as pafs

from smec_core.checksums import SUMS
from smec_core.data.tables import ENDINGS, MANIFEST, QRELS, TABLES
from smec_core.data.uri import is_within, join_uri, open_filesystem, public_uri, without_slash
from smec_core.data.versions import CURRENT
from smec_core.errors import InputError, StoreError


def check_apart(places: Mapping[str, str | None], data: Sequence[str]) -> None:
    """Refuses places within the tables or the judgements of datasets; beside them, in a dataset's folder, is well.

    Args:
        places: folders to write to, by the setting that names them; None for one that is not given.
        data: the datasets.

    Raises:
        InputError: one lies within a table, which nobody could read any more.
    """
    for uri in data:
        tables = [join_uri(uri, f"{name}{ending}") for name in TABLES for ending in ("", *ENDINGS)]
        _refuse_within(places, [*tables, join_uri(uri, QRELS)])


def check_apart_from_table(key: str, place: str, table: str) -> None:
    """Refuses a place below the one table that a job reads, or of the dataset that the table is of.

    Its own folder is not refused here: it may be a published one, to which a version is added.

    Raises:
        InputError: it lies there.
    """
    if not (is_within(place, table) and is_within(table, place)):
        base = without_slash(table)
        _refuse_within({key: place}, [table, *(f"{base}{ending}" for ending in ENDINGS if "?" not in base)])
        path, mark, options = base.partition("?") if "://" in base else (base, "", "")
        if Path(path).stem in TABLES:
            check_apart({key: place}, [f"{os.path.dirname(path) or '.'}{mark}{options}"])


def _refuse_within(places: Mapping[str, str | None], folders: Sequence[str]) -> None:
    for key, place in places.items():
        for folder in folders:
            if place is not None and is_within(place, folder):
                raise InputError(
                    f"{key}: {public_uri(place)} lies in {public_uri(folder)}, where it would be taken for data; "
                    "name a folder outside"
                )


def file_above(path: Path) -> Path | None:
    """The file that a local path lies below, where no folder can be made."""
    return next((place for place in path.parents if os.path.isfile(place)), None)


def check_no_file(key: str, folder: str) -> None:
    """Refuses a file, or a place below one, where a folder is wanted.

    Raises:
        InputError: it is one.
    """
    filesystem, path = open_filesystem(folder)
    places = [path.rstrip("/")]
    if isinstance(filesystem, pafs.LocalFileSystem):
        # an object store has keys below keys
        places += [str(place) for place in Path(path).parents]
    for place in filter(None, places):
        kind = pafs.FileType.Unknown
        # a role may write below what it may not ask for
        with suppress(StoreError):
            kind = filesystem.get_file_info(place).type
        if kind == pafs.FileType.File:
            shown = public_uri(folder)
            what = f"{shown} is" if place == places[0] else f"{shown} cannot be made, {place} is"
            raise InputError(f"{key}: {what} a file; name a folder")


def check_file_apart(key: str, file: Path) -> None:
    """Refuses a file that may not be written over or put there: of a model folder, or one that a manifest names.

    Raises:
        InputError: it is such a file.
    """
    if file.name in (SUMS, MANIFEST, CURRENT):
        raise InputError(f"{key}: {file} has the name of a record of smec; name another file")
    # the place itself, and what a link there leads to
    for place in {file.parent.resolve() / file.name, Path(os.path.realpath(file))}:
        for folder in place.parents:
            if os.path.exists(folder / "adapter.safetensors") or _is_named(place, folder):
                raise InputError(
                    f"{key}: {file} would be put among the files of {folder}, which is to stay as it was written; "
                    "name a file elsewhere"
                )


def _is_named(place: Path, folder: Path) -> bool:
    """Whether a folder's own records name a file; one that cannot be read names none."""
    name = place.relative_to(folder).as_posix()
    with suppress(OSError, ValueError):
        if f"  {name}" in (line[64:] for line in (folder / SUMS).read_text().splitlines()):
            return True
    with suppress(OSError, ValueError, KeyError, TypeError):
        return any(file["name"] == name for file in json.loads((folder / MANIFEST).read_bytes())["files"])
    return False
