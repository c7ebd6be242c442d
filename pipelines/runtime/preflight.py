"""What Ray and MLflow need of this machine, seen to before they start: made to work, or else said in one line.

Containers have less than other machines: few open files, folders that cannot be written to, users without a home.
"""

import os
import re
import resource
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.console import warn
from smec_core.errors import LONGEST_REASON, InputError, SmecError, one_line
from smec_core.shown import safe_line
from smec_core.temporary import NAME_LENGTH, base_folder

# bytes for the logs of a cluster
ROOM = 16 << 20
# of a Unix socket's path, what the kernel takes, and what Ray adds: its session is named by time and process
SOCKET_PATH = 107
RAY_PATH = NAME_LENGTH + len("//session_2026-11-29_00-37-14_793622_4194304/sockets/plasma_store")

ANSWER_SECONDS = 5.0
"""How long a cluster may take to answer."""
_HOST_PORT = re.compile(r"(?:ray://)?([^/:@]+|\[[0-9a-fA-F:.]+\]):(\d+)")


def check_limits(cpus: int) -> None:
    """Sees that the limits of this process, which all of a Ray has that it starts, leave room for one.

    Args:
        cpus: logical CPUs of the cluster.

    Raises:
        InputError: a limit is too low; Ray's processes would end without a word, or with pages.
    """
    # of what was seen: twice the files of the process that has the most, and the threads of all
    needs = [
        ("open files", resource.RLIMIT_NOFILE, 128 + 8 * cpus, "ulimit -n 65536, in Docker --ulimit nofile=65536"),
        ("bytes of address space", resource.RLIMIT_AS, psutil.virtual_memory().total // 2, "ulimit -v unlimited"),
    ]
    if os.geteuid() != 0:
        # root has no such limit
        needs.append(("processes and threads", resource.RLIMIT_NPROC, 384 + 32 * cpus, "ulimit -u unlimited"))
    for what, limit, needed, cure in needs:
        soft, hard = resource.getrlimit(limit)
        if soft == resource.RLIM_INFINITY or soft >= needed:
            continue
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise InputError(
                f"limit of {what}: {hard:,} is too low for Ray with {cpus} CPU(s), which needs {needed:,}; "
                f"raise it: {cure}"
            )
        resource.setrlimit(limit, (hard, hard))


def ray_place() -> Path:
    """Where on this machine the folder of a Ray goes: the temporary folder, or a shorter one where that is too long.

    Raises:
        InputError: there is none.
    """
    longest = SOCKET_PATH - RAY_PATH
    named = os.environ.get("RAY_TMPDIR")
    try:
        wanted = named or str(base_folder())
    except FileNotFoundError as error:
        raise InputError(f"TMPDIR: {one_line(error)}; name a folder that can be written to") from error
    for folder in [wanted] if named else [wanted, "/tmp", "/var/tmp", "/dev/shm"]:
        if len(os.fsencode(folder)) > longest:
            continue
        with suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK) and shutil.disk_usage(folder).free >= ROOM:
            if folder != wanted:
                warn(f"Ray's files are in {folder}: {wanted} is full, not to be written to or too long for sockets")
            return Path(folder)
    raise InputError(
        f"{'RAY_TMPDIR' if named else 'TMPDIR'}: {wanted} is no folder for Ray; name one in RAY_TMPDIR that can be "
        f"written to, has {ROOM >> 20} MiB free and a path of at most {longest} bytes"
    )


def keep_token() -> None:
    """Gives Ray its token in the environment, where the home folder, in which Ray keeps it, cannot be written to."""
    try:
        home = Path.home()
    except RuntimeError:
        # a user that /etc/passwd does not have
        home = Path(os.environ.setdefault("HOME", "/"))
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or (home / ".ray/auth_token").exists():
        return
    with suppress(OSError):
        (home / ".ray").mkdir(parents=True, exist_ok=True)
    if not os.access(home / ".ray", os.W_OK | os.X_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def check_address(address: str) -> None:
    """Asks a cluster's address for some seconds whether anything is there: Ray itself would go on for minutes.

    Args:
        address: RAY_ADDRESS; of one without a port, as `auto`, Ray knows more.

    Raises:
        SmecError: nothing answers there.
    """
    match = _HOST_PORT.fullmatch(address)
    if match is None:
        return
    place, end = (match[1].strip("[]"), int(match[2])), time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection(place, timeout=ANSWER_SECONDS).close()
            return
        except (OSError, OverflowError, UnicodeError) as error:
            # it may be about to start
            if time.monotonic() + 1 < end and isinstance(error, OSError):
                time.sleep(1)
                continue
            raise SmecError(
                f"RAY_ADDRESS: nothing answers at {match[1]}:{match[2]} ({one_line(error)}); start that cluster or "
                "correct the address, or unset it for a Ray on this machine"
            ) from error


def check_store(uri: str) -> None:
    """Opens MLflow's database once, where its store is one: MLflow itself would go on trying for 100 seconds.

    Raises:
        InputError: its file cannot be opened, or it is no such address.
        SmecError: its server does not answer.
    """
    # here and not above: not every job needs MLflow
    from mlflow.store.db.db_types import DATABASE_ENGINES, SQLITE
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    # an address with a single slash is one of a database, too
    engine = uri.partition(":")[0].partition("+")[0]
    if engine not in DATABASE_ENGINES:
        return
    from mlflow.store.db.utils import create_sqlalchemy_engine

    try:
        # MLflow makes missing folders of a file
        if engine == SQLITE and not Path(str(make_url(uri).database)).parent.is_dir():
            return
        database = create_sqlalchemy_engine(uri)
        try:
            database.connect().close()
        finally:
            database.dispose()
    except Exception as error:
        # of whatever database it is
        problem = safe_line((str(error) or type(error).__name__).splitlines()[0], LONGEST_REASON)
        kind = InputError if engine == SQLITE or isinstance(error, ArgumentError) else SmecError
        raise kind(f"{problem}; name another store in MLFLOW_TRACKING_URI") from error


def missing_database(uri: str) -> str | None:
    """The file of MLflow's store where it is one that is not there yet: whoever opens it makes an empty one."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    path = None
    if uri.startswith("sqlite:"):
        # what is no address is refused by who opens it
        with suppress(ArgumentError):
            path = make_url(uri).database
    return path if path and path != ":memory:" and not Path(path).exists() else None
