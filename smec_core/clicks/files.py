"""Where the files of a click log lie: nothing beside them is skipped silently."""

import pyarrow.fs as pafs

from smec_core.data.folders import asking, files_below, listed, not_hidden
from smec_core.data.table_formats import files_in_force
from smec_core.data.tables import NOTE, Table
from smec_core.data.uri import shown_path
from smec_core.errors import InputError

_LOG_ENDINGS = (".parquet", ".csv", ".jsonl")


def find_log(filesystem: pafs.FileSystem, path: str) -> Table:
    """The files of a log: of the folder `path`, or that file; all Parquet, all CSV or all lines of JSON.

    Returns:
        Its form is the ending: .parquet, .csv or .jsonl; of text files also those that end in .gz.

    Raises:
        InputError: nothing there, files of several kinds, or data that would not be read.
    """
    shown = shown_path(filesystem, path)
    with asking(filesystem, path):
        info = filesystem.get_file_info(path)
    forms = ", ".join(_LOG_ENDINGS)
    if info.type == pafs.FileType.File:
        if not (ending := _log_ending(path)):
            raise InputError(f"{shown}: is no file of a log; its name has to end in one of {forms}")
        return Table(ending, [path])
    infos = listed(filesystem, path)
    subfolders = {one.base_name for one in infos if one.type == pafs.FileType.Directory}
    with asking(filesystem, path):
        if (in_force := files_in_force(filesystem, path, subfolders)) is not None:
            return Table(".parquet", in_force)
    found: dict[str, list[str]] = {}
    for one in not_hidden(infos):
        if one.type == pafs.FileType.File and (ending := _log_ending(one.base_name)):
            found.setdefault(ending, []).append(one.path)
        else:
            _refuse_others(filesystem, one)
    if not found:
        raise InputError(f"{shown}: no file of a log there; expected a file, or a folder of files, that end in {forms}")
    if len(found) > 1:
        one, other = (shown_path(filesystem, found[ending][0]) for ending in sorted(found)[:2])
        raise InputError(f"{shown}: holds {one} and {other}; leave files of one kind there")
    [(ending, paths)] = found.items()
    return Table(ending, sorted(paths))


def _refuse_others(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> None:
    """Refuses what is no file of a log but for notes, in a subfolder, too: it may be a part of the log.

    Raises:
        InputError: there is such a file.
    """
    is_folder = info.type == pafs.FileType.Directory
    for file in files_below(filesystem, info.path) if is_folder else [info]:
        if not NOTE.fullmatch(file.base_name):
            why = (
                "lies in a subfolder, and subfolders are not read; move it up, or begin the subfolder's name with _"
                if is_folder
                else f"would not be read; files of a log end in one of {', '.join(_LOG_ENDINGS)}; rename it, move it "
                "away, or begin its name with _"
            )
            raise InputError(f"{shown_path(filesystem, file.path)}: {why}")


def _log_ending(name: str) -> str | None:
    """The ending of a log's file, without .gz; None where it is none."""
    stem = name.removesuffix(".gz")
    ending = next((ending for ending in _LOG_ENDINGS if stem.endswith(ending)), None)
    return None if ending == ".parquet" and stem != name else ending
