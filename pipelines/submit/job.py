"""`smec submit`: runs a command of smec as a job of a Ray cluster, follows it, and ends as it ends."""

import os
import re
import shlex
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from pipelines import signals
from pipelines.console import say, warn
from pipelines.submit.bundle import ELSEWHERE, check_command, check_settings, fingerprint, write_bundle
from pipelines.submit.client import JobClient, follow
from pipelines.submit.settings import SubmitSettings
from smec_core.errors import GateError, InputError, SmecError
from smec_core.masking import is_secret_name, mask
from smec_core.shown import safe_line
from smec_core.temporary import temporary_folder

# what a training needs to record itself; the rest of the environment is the cluster's own
FORWARDED = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
RECORDED = ("train", "tune", "retrain")
"""Commands that record what they do in MLflow."""
SEEN = "which whoever may read the cluster's jobs would see"
REFUSED = GateError.exit_code
"""A decision, which another start would not make again: it would find nothing new."""
STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""In a job's environment: how long Ray lets it end by itself when it is stopped; 3 s, the default, are few for that."""
PROGRAM = ("python", "-m", "smec_core")
"""What runs a command on the cluster: the code that was sent, by the machines' Python. Not the script `smec`: where
they have the other packages only there is none (exit code 127), and where it is there, it may be of another version,
which does not find its way into this code."""
ID_METADATA = "smec_id"
"""Key of a job's metadata: the id that all its starts have in common."""


class JobError(SmecError):
    """The job ended with another exit code than 0, which is then the submission's own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def message(self) -> str:
        """What became of it."""
        return str(self.args[0])


def run(settings: SubmitSettings) -> dict[str, Any]:
    """Submits the command, or finds the job that an earlier submission of it has started, and follows that.

    The job's log goes to stdout, everything else to stderr.

    Returns:
        id and status (SUCCEEDED; with `detach`, that of now) of the job, and its exit_code (None while it runs).

    Raises:
        InputError: the command is wrong, the address or the token is, or what would be sent holds a secret.
        JobError: the job failed or was stopped; its exit code is that of the command, or 1.
        SmecError: the cluster cannot be reached, or was lost.
    """
    check_command(settings.command)
    _refuse_secrets(settings)
    variables = _variables(settings.env)
    address = _address(settings.address)
    with temporary_folder() as folder:
        command = write_bundle(settings.command, folder)
        # after the search for secrets, which a message might repeat
        check_settings(settings.command)
        _warn_of_lost_records(settings.command, variables.get("MLFLOW_TRACKING_URI"))
        # run by a shell on the cluster, so every argument is quoted
        entrypoint = shlex.join([*PROGRAM, *command])
        name = settings.id or _name(entrypoint, variables, fingerprint(folder))
        runtime_env = {"working_dir": str(folder), "env_vars": {STOP_SECONDS: "30"} | variables}
        client = JobClient(address)
        job_id = _find_or_start(client, name, entrypoint, runtime_env, is_named=settings.id is not None)
    if settings.detach:
        say(_how(client, job_id))
        print(job_id)
        info = client.info(job_id)
        return {"id": job_id, "status": info.status.value, "exit_code": info.driver_exit_code}
    goes_on = safe_line(f"no longer followed, job {job_id} goes on. {_how(client, job_id)}")
    signals.then(goes_on)
    try:
        info = follow(client, job_id, settings.patience)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(goes_on) from None
    if info.status.value != "SUCCEEDED":
        raise _failure(job_id, info)
    say(f"job {job_id} is done")
    return {"id": job_id, "status": info.status.value, "exit_code": info.driver_exit_code}


def _address(given: str | None) -> str:
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise InputError("no cluster: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS to it")
    if not re.match(r"https?://[^/]", address):
        raise InputError(
            f"address {mask(address)}: must be the http:// or https:// address of the cluster's dashboard, whose port "
            "is usually 8265; give it as --address or in RAY_API_SERVER_ADDRESS"
        )
    return address.rstrip("/")


def _variables(env: list[str]) -> dict[str, str]:
    """Environment variables that the job gets in addition to those of the cluster. Their values are never printed."""
    variables = {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}
    for text in env:
        name, separator, value = text.partition("=")
        if not separator and name not in os.environ:
            raise InputError(f"env {name}: is not set here; give --env {name}=VALUE")
        variables[name] = value if separator else os.environ[name]
    uri = variables.get("MLFLOW_TRACKING_URI", "")
    if mask(uri) != uri:
        raise InputError(
            f"MLFLOW_TRACKING_URI holds a password or token, {SEEN}; set it without, and MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment of the cluster's machines"
        )
    for name, value in variables.items():
        if is_secret_name(name) or mask(value) != value:
            raise InputError(f"env {name} holds a secret, {SEEN}; set it in the environment of the cluster's machines")
    return variables


def _refuse_secrets(settings: SubmitSettings) -> None:
    """Refuses what Ray would show in its list of jobs: it keeps the command and its environment."""
    # word by word, so that it can be said which, then together: a word may say that the next one is a secret
    for words in [*([word] for word in [*settings.command, settings.id or ""]), settings.command]:
        text = " ".join(words)
        if mask(text) != text:
            raise InputError(f"{mask(text)} holds a secret, {SEEN}; {ELSEWHERE}")


def _warn_of_lost_records(command: Sequence[str], uri: str | None) -> None:
    """Says where MLflow would keep its record of the command in the job's own folder."""
    name = command[0]
    if name not in RECORDED or "--dry-run" in command:
        return
    cure = "set MLFLOW_TRACKING_URI to your MLflow server, which is sent along"
    if uri is None:
        warn(
            f"MLFLOW_TRACKING_URI is not set here. Where the cluster's machines do not set it either, what smec {name} "
            f"records in MLflow lies in the job's own folder, which goes away with it: {cure}"
        )
    elif _is_relative(uri):
        warn(
            f"MLFLOW_TRACKING_URI={mask(uri)} is relative, so what smec {name} records in MLflow lies in the job's own "
            f"folder, which goes away with it: {cure}"
        )


def _is_relative(uri: str) -> bool:
    """Whether a place of MLflow's lies in the working folder: sqlite:///mlflow.db, file:mlruns, mlruns."""
    scheme, colon, place = uri.partition(":")
    if not colon:
        return not uri.startswith(("/", "databricks"))
    if scheme.startswith("sqlite"):
        # of an absolute path there are four slashes
        return not place.startswith("////")
    return scheme == "file" and not place.startswith("/")


def _name(entrypoint: str, variables: dict[str, str], files: str) -> str:
    digest = sha256("\0".join([entrypoint, files, *(f"{k}={v}" for k, v in sorted(variables.items()))]).encode())
    return f"smec-{_command_of(entrypoint)[0]}-{digest.hexdigest()[:16]}"


def _command_of(entrypoint: str) -> list[str]:
    """The command that a job runs; earlier versions start it by another module."""
    return shlex.split(entrypoint)[len(PROGRAM) :]


def _find_or_start(client: JobClient, name: str, entrypoint: str, runtime_env: dict[str, Any], is_named: bool) -> str:
    """The job of this name that runs, or is done and was asked for by name; else a new one.

    The first start has the name as its id, later ones NAME-2, NAME-3, ... Ray takes an id once, so that of two
    submissions at the same time one starts the job and the other finds it.
    """
    taken: set[str] = set()
    while True:
        jobs = client.jobs(ID_METADATA, name)
        for job in jobs:
            if _command_of(job.entrypoint) != _command_of(entrypoint):
                raise InputError(f"id {name}: is that of another command ({job.entrypoint}); give another --id")
        running = [job for job in jobs if not job.status.is_terminal()]
        done = [
            job for job in jobs if is_named and (job.status.value == "SUCCEEDED" or job.driver_exit_code == REFUSED)
        ]
        if running or done:
            found = (running or done)[-1].submission_id
            say(f"job {found} {'runs already' if running else 'is done already'}")
            return str(found)
        taken |= {str(job.submission_id) for job in jobs}
        # one above the highest, and never one that is free again: Ray does not take the id of a deleted job
        numbers = [1 if job_id == name else int(job_id.removeprefix(f"{name}-")) for job_id in taken]
        number = max(numbers, default=0) + 1
        job_id = name if number == 1 else f"{name}-{number}"
        if client.submit(job_id, entrypoint, runtime_env, {ID_METADATA: name}):
            say(f"job {job_id} is submitted")
            return job_id
        # by a submission at this moment, or by one of another name; the next look says which
        taken.add(job_id)


def _failure(job_id: str, info: Any) -> JobError:
    code = info.driver_exit_code
    if info.status.value == "STOPPED":
        return JobError(f"job {job_id} was stopped", 1)
    if code is None:
        why = safe_line(" ".join((info.message or "no reason given").split()), 500)
        return JobError(f"job {job_id} failed on the cluster: {why}", 1)
    # others are of a process that was killed, or that a shell could not start
    return JobError(f"job {job_id} ended with exit code {code}; its log says why", code if 0 < code < 126 else 1)


def _how(client: JobClient, job_id: str) -> str:
    where = f"--address {client.shown_address} {job_id}"
    return f"follow it: ray job logs --follow {where} (or this command again); stop it: ray job stop {where}"
