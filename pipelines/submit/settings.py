"""What `smec submit` takes."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from smec_core.config import Settings, matching

AN_ID = matching(
    r"[A-Za-z0-9][A-Za-z0-9._:+-]*", "of letters, digits, '.', '_', ':', '+' and '-', with a letter or a digit first"
)


class SubmitSettings(Settings):
    """Run a command of smec as a job on a Ray cluster: print its log, end with its exit code.

    Sends this project's code and the files of the command's --config and search space, nothing else. All other paths
    are those of the cluster's machines: absolute, or URIs. The machines have all other packages installed.

    The job gets MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID and each --env. Whoever holds the
    cluster's token can read them, and the command and its files: a secret in any of them is refused. It belongs in
    the environment of the machines.

    A job that runs is followed and not started twice: give the command again after a lost connection. Once it has
    ended, the same command starts anew. With --id, one that has succeeded is not run again: for schedulers, which
    name each planned run and may retry it.

    Ctrl-C and --detach leave the job running. A job that was stopped, or was lost with its cluster, gives exit code
    1.

    Example: smec submit --address http://127.0.0.1:8265 -- train --config train.yaml --out /shared/model
    """

    command: list[str] = Field(min_length=1)
    """The command of smec and its arguments: ["train", "--data", ...]."""
    address: str | None = None
    """The cluster's dashboard, http://HOST:8265; default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS."""
    id: Annotated[str | None, AN_ID] = Field(None, max_length=200)
    """Name of the job on the cluster; default: a hash of the command, its files, its environment and the code. A job of
    this name that runs is followed. One that has succeeded, or whose gate has refused, is returned where the name was
    given here, and otherwise a new one starts: a nightly command is the same every night."""
    env: list[str] = Field([], json_schema_extra={"metavar": "NAME[=VALUE]"})
    """NAME=VALUE, or NAME to take the value from this environment: what the job's environment gets besides
    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID. Whoever holds the cluster's token can read
    it, so no secrets."""
    detach: bool = False
    """Leave once the job is submitted."""
    patience: float = Field(120.0, gt=0)
    """Seconds for which a cluster may be out of reach before a job is no longer followed."""

    @field_validator("env")
    @classmethod
    def _are_variables(cls, env: list[str]) -> list[str]:
        for text in env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text.partition("=")[0]):
                raise ValueError("must be NAME or NAME=VALUE")
        return env
