"""Where an export goes: it is written beside its place, and replaces nothing but an earlier export of the same format.

    OUT                       onnx: its metadata hold where it came from
    OUT, OUT.json             faiss: that lies beside it
    OUT/..., OUT/export.json  sentence-transformers, numpy

The JSON files also hold a checksum of each file, so that a file that somebody has changed is never replaced.
"""

import glob
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smec_core.checksums import sha256_of
from smec_core.errors import InputError
from smec_core.folders import NEW, put_in_place, replace_folder, sync
from smec_core.temporary import remove_left_behind, temporary_folder

MADE_BY = "smec export"
FOLDERS = {"numpy", "sentence-transformers"}


def check_replaceable(out: Path, to: str) -> None:
    """Refuses a place that holds anything but an unchanged export of the same format.

    Raises:
        InputError: something else is there.
    """
    if out.is_dir() and to not in FOLDERS:
        raise InputError(f"out: {out} is a folder, and --to {to} writes a file; name one, as {out / 'model'}.{to}")
    record_file = _record_file(out, to)
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if is_empty_folder or not (out.exists() or record_file.exists()):
        return
    advice = "nothing of it is overwritten; name another, or remove it first"
    record = _read_record(record_file, to)
    if record is None:
        wrong = out if out.exists() else record_file
        raise InputError(f"out: {wrong} exists and is not what smec export --to {to} makes; {advice}")
    if to == "onnx":
        return
    exported = record.get("files", {})
    # a run was killed before it had put the index in its place
    before = record.get("replaces", {})
    known = {name: {exported.get(name), before.get(name)} for name, _ in _files(out, to)}
    if changed := [name for name, path in _files(out, to) if sha256_of(path) not in known[name]]:
        raise InputError(f"out: {out} is not as it was exported, {changed[0]} is new or has changed; {advice}")


def place(out: Path, to: str, origin: dict[str, Any], write: Callable[[Path], object]) -> int:
    """Writes an export beside `out`, then puts it in its place; if writing fails, nothing is left and all is as it was.

    Args:
        out: file or folder, as `to` makes it.
        to: the format.
        origin: where the export comes from, for its record.
        write: writes the export to a path that it is given: a file to make, or a folder that is there.

    Returns:
        Bytes of the export, without its record.
    """
    if to in FOLDERS:

        def fill(folder: Path) -> None:
            write(folder)
            # safetensors makes files that only their owner can read
            for _, path in _files(folder, to):
                path.chmod(0o644)
            _record_file(folder, to).write_text(json.dumps(_record(folder, to, origin), indent=2) + "\n")

        replace_folder(out, fill)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_left_behind(out.parent, f".{glob.escape(out.name)}.*{NEW}")
        with temporary_folder(out.parent, f".{out.name}.", NEW) as beside:
            new = beside / out.name
            write(new)
            if to == "onnx":
                _publish(new, out)
            else:
                final, file = _record(new, to, origin), _record_file(new, to)
                before = {name: sha256_of(path) for name, path in _files(out, to)}
                # a run that is killed between index and record can be started again: the record knows both indexes
                for record in (final | {"replaces": before}, final):
                    file.write_text(json.dumps(record, indent=2) + "\n")
                    _publish(file, _record_file(out, to))
                    if new.exists():
                        _publish(new, out)
    return sum(path.stat().st_size for _, path in _files(out, to))


def check_encoder(encoder: str) -> None:
    """Refuses an encoder that is an export of ours: its vectors are compressed already.

    Raises:
        InputError: it is one.
    """
    to = "sentence-transformers"
    if record := _read_record(_record_file(Path(encoder), to), to):
        raise InputError(
            f"encoder: {encoder} is an export of the model {record['model_fingerprint'][:12]}, so its vectors are "
            f"compressed already; name {record['encoder']}, of which it was made"
        )


def _record_file(out: Path, to: str) -> Path:
    if to == "onnx":
        return out
    return out / "export.json" if to in FOLDERS else out.with_name(f"{out.name}.json")


def _read_record(path: Path, to: str) -> dict[str, Any] | None:
    """The record of an earlier export of this format; None if there is none."""
    if to == "onnx":
        from pipelines.export.formats.onnx_graph import read_origin

        record = read_origin(path)
    else:
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
    ours = isinstance(record, dict) and record.get("made_by") == MADE_BY and record.get("to") == to
    return record if ours else None


def _record(out: Path, to: str, origin: dict[str, Any]) -> dict[str, Any]:
    return origin | {"files": {name: sha256_of(path) for name, path in _files(out, to)}}


def _publish(path: Path, place: Path) -> None:
    sync(path)
    put_in_place(path, place)


def _files(out: Path, to: str) -> Iterator[tuple[str, Path]]:
    """The files of an export but for its record, by their path in it."""
    if to not in FOLDERS:
        if out.exists():
            yield out.name, out
        return
    for path in sorted(out.rglob("*")):
        # Python's cache of the loader appears where that is imported from the folder
        name = path.relative_to(out)
        if path.is_file() and path != _record_file(out, to) and "__pycache__" not in name.parts:
            yield name.as_posix(), path
