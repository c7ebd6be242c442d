"""What `smec submit` sends to the cluster: this project's code, and the settings files that the command names."""

import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import click

from pipelines.cli.command import settings_of
from pipelines.cli.main import COMMANDS, make_command, parted
from pipelines.cli.settings import check_flags, read_assignment
from smec_core.errors import InputError
from smec_core.masking import mask
from smec_core.yaml_file import read_mapping

PACKAGES = ("smec_core", "pipelines", "tune_spaces")
# what the packages are made of; whatever else lies in their folders stays here
SUFFIXES = {".py", ".yaml", ".j2", ".css", ".typed"}
FILE_OPTIONS = ("--config", "--space")
"""Options whose file is read by the command itself, so that it is sent along."""
ELSEWHERE = "leave it out, and give the cluster's machines a role, or the secret in their environment"
FILES = "files"
"""Folder of the bundle for those files."""

PLACES = {
    *("base", "clicks", "data", "folder", "input", "json_file", "model", "out", "output", "path", "source", "storage"),
    "warm_start",
}
"""Parameters and settings of the commands that name a place to read or to write."""
SEVERAL = "experiment", "data"
"""Command and parameter that name several places; of all others a comma is a part of the name."""


def check_command(command: Sequence[str]) -> None:
    """Reads a command line as the job will, so that bad usage ends here and not on the cluster.

    Raises:
        InputError: it is no command of smec that can be submitted, its usage is wrong, or it names a place that the
            cluster cannot reach.
    """
    layers = _layers(parse_command(command))
    for place in (place for layer in layers for place in _places(layer, command[0])):
        if not place.startswith("/") and "://" not in place:
            raise InputError(
                f"smec {command[0]}: {place} is relative, so it would lie in the job's own folder, which goes away "
                "with it; give an absolute path that the cluster's machines mount, or a URI"
            )


def check_settings(command: Sequence[str]) -> None:
    """Reads a command's settings as the job will, unless their file is one of the cluster's.

    Raises:
        InputError: an unknown key, a value that does not fit, or one that is missing.
    """
    parameters = parse_command(command)
    config = parameters["config"]
    if config is not None and not Path(config).is_file():
        return
    kind = make_command(command[0]).kind
    flags, common = parted(command[0], kind, parameters)
    try:
        settings_of(kind, flags, common["preset"], config, common["assign"])
    except InputError as error:
        raise InputError(f"smec {command[0]}: {error}") from error


def _layers(parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a command line, its --set and its file, where that is here, give; the first that has a key wins."""
    layers = [parameters, dict(read_assignment(text) for text in parameters["assign"])]
    if parameters["config"] is not None and Path(parameters["config"]).is_file():
        layers.append(read_mapping(Path(parameters["config"])))
    return layers


def _places(layer: Mapping[str, Any], command: str) -> Iterator[str]:
    for key, value in layer.items():
        if isinstance(value, Mapping):
            yield from _places(value, command)
        elif str(key).rpartition(".")[2] in PLACES and value is not None:
            if (command, key) != SEVERAL:
                yield str(value)
            else:
                yield from value if isinstance(value, list) else str(value).split(",")


def parse_command(command: Sequence[str]) -> Mapping[str, Any]:
    """The parameters of a command of smec, by the names that the command line's reader gives them.

    Raises:
        InputError: it is no command that can be submitted, or its usage is wrong.
    """
    name, *arguments = command
    known = sorted(COMMANDS.keys() - {"submit"})
    if name not in known:
        raise InputError(f"{name}: is no command that can be submitted; known: {', '.join(known)}")
    try:
        made = make_command(name)
        parameters = made.make_context(f"smec {name}", list(arguments)).params
    except click.exceptions.Exit as done:  # --help was asked for, and has been answered
        sys.exit(done.exit_code)
    except click.ClickException as error:
        raise InputError(f"smec {name}: {error.format_message()}") from error
    try:
        check_flags(made.kind, parted(name, made.kind, parameters)[0])
    except InputError as error:
        raise InputError(f"smec {name}: {error}") from error
    return parameters


def write_bundle(command: Sequence[str], folder: Path) -> list[str]:
    """Copies the code and the command's settings files into an empty folder, from which the job will run.

    Returns:
        The command, with the files named as the job finds them.

    Raises:
        InputError: a file cannot be read, or is not there and is not an absolute path either.
    """
    for package in PACKAGES:
        _copy_package(package, folder / package)
    name, *arguments = _take_files(command, folder)
    return [name, *_take_space(command, folder), *arguments]


def fingerprint(folder: Path) -> str:
    """A hash of the names and contents of all files under a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _copy_package(package: str, target: Path) -> None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed as files, so it cannot be sent to the cluster")
    source = Path(next(iter(spec.submodule_search_locations)))
    for path in source.rglob("*"):
        inside = path.relative_to(source)
        if path.suffix in SUFFIXES and path.is_file() and not any(part.startswith(".") for part in inside.parts):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inside)


def _take_files(command: Sequence[str], folder: Path) -> list[str]:
    changed: list[str] = []
    option: str | None = None
    for argument in command:
        name, separator, value = argument.partition("=")
        if option is not None:
            changed.append(_take(option, argument, folder))
            option = None
        elif name in FILE_OPTIONS and separator:
            changed.append(f"{name}={_take(name, value, folder)}")
        else:
            changed.append(argument)
            option = argument if argument in FILE_OPTIONS else None
    return changed


def _take_space(command: Sequence[str], folder: Path) -> list[str]:
    """The flag for a search space that --set or the settings' file names; empty where the job finds it by that name."""
    if command[0] != "tune":
        return []
    by_flag, *layers = _layers(parse_command(command))
    given = next((str(layer["space"]) for layer in layers if "space" in layer), None)
    if by_flag["space"] is not None or given is None:
        return []
    found = _take("--space", given, folder)
    return [] if found == given else ["--space", found]


def _take(option: str, value: str, folder: Path) -> str:
    """Where the job finds a file: in the bundle when it is one of this machine's, else where the user says."""
    source = Path(value)
    if not source.is_file():
        # a path on the cluster, or one of the search spaces that smec ships, by name
        if source.is_absolute() or (option == "--space" and not source.suffix):
            return value
        raise InputError(f"{option} {value}: no such file here; a file of the cluster needs its absolute path")
    # in a folder named after the option: two of them may have the same name
    target = PurePosixPath(FILES, option.removeprefix("--"), source.name)
    (folder / target).parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, folder / target)
    except OSError as error:
        raise InputError(f"{option} {value}: cannot be read ({error.strerror})") from error
    _refuse_secrets(folder / target, f"{option} {value}")
    return str(target)


def _refuse_secrets(file: Path, shown: str) -> None:
    """Refuses a file that would lie in the cluster's store and on its machines with a secret in it."""
    text = file.read_bytes().decode(errors="replace")
    if mask(text) == text:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if mask(line) != line:
            raise InputError(f"{shown}: line {number} holds a secret ({mask(line.strip())}); {ELSEWHERE}")
    raise InputError(f"{shown}: holds a secret; {ELSEWHERE}")
