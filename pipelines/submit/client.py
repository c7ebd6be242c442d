"""Ray's job API as `smec submit` uses it: time limits, one-line errors, logs that survive a lost connection."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.exceptions import AuthenticationError

from pipelines.runtime.ray_private import timed_job_client
from smec_core.errors import InputError, SmecError
from smec_core.masking import mask, settled
from smec_core.shown import safe_line, safe_lines

POLL_SECONDS = 5.0
RETRY_SECONDS = 1.0
DRAIN_SECONDS = 10.0
"""How long the log of a job that has ended may take to arrive."""

_BROKEN = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class Unreachable(SmecError):
    """The cluster does not answer: a later try may succeed."""


class JobClient:
    """A cluster's jobs."""

    def __init__(self, address: str) -> None:
        """Connects.

        Args:
            address: http:// or https:// address of the cluster's dashboard.

        Raises:
            InputError: the cluster refuses the token.
            SmecError: there is no such cluster.
        """
        self.shown_address = mask(address)
        for module in ("job.sdk", "dashboard_sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
        # Ray lets these variables win over the argument
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        with self._one_line_errors():
            self._client = timed_job_client(address)

    def jobs(self, key: str, value: str) -> list[JobDetails]:
        """The submitted jobs that have this in their metadata, oldest first."""
        with self._one_line_errors():
            found = [job for job in self._client.list_jobs() if job.type == JobType.SUBMISSION]
        found = [job for job in found if (job.metadata or {}).get(key) == value]
        return sorted(found, key=lambda job: job.start_time or 0)

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> bool:
        """Starts a job.

        Returns:
            Whether it was started: not where there is one of this id.
        """
        with self._one_line_errors():
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=metadata
                )
            except RuntimeError as error:
                # the only sign that Ray gives
                if f"{job_id} already exists" in str(error):
                    return False
                raise
        return True

    def info(self, job_id: str) -> JobDetails:
        """What the cluster knows of a job.

        Raises:
            Unreachable: the cluster does not answer.
            SmecError: it knows no such job.
        """
        with self._one_line_errors():
            try:
                return self._client.get_job_info(job_id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    raise SmecError(
                        f"job {job_id} is lost: the cluster at {self.shown_address} does not know it (any more)"
                    ) from error
                raise

    async def print_log(self, job_id: str, printed: int) -> tuple[int, bool]:
        """Prints a job's log on stdout as it grows.

        Args:
            job_id: the job.
            printed: characters of it to leave out, since they are printed already: whole lines.

        Returns:
            Characters printed by now, and whether that is all: not where the connection was lost.
        """
        skip, begun = printed, ""
        log = self._client.tail_job_logs(job_id)
        while True:
            # around this alone: that stdout is closed is another matter
            try:
                text = await anext(log, None)
            except (aiohttp.ClientError, OSError, RuntimeError):
                return printed, False
            if text is None:
                print("\n".join(safe_lines(begun)), end="", flush=True)
                return printed + len(begun), True
            new, skip = begun + text[skip:], max(0, skip - len(text))
            # by whole lines, in which secrets are found, and not before all lines of a secret are there
            done = settled(new[: new.rfind("\n") + 1])
            print("\n".join(safe_lines(new[:done])), end="", flush=True)
            printed, begun = printed + done, new[done:]

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        where = self.shown_address
        try:
            yield
        except AuthenticationError as error:
            raise InputError(
                f"the cluster at {where} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
                "~/.ray/auth_token) to those of the cluster"
            ) from error
        except requests.exceptions.JSONDecodeError as error:
            raise SmecError(f"{where} is no dashboard of a Ray cluster: its answers are not JSON") from error
        except (ConnectionError, *_BROKEN) as error:
            raise Unreachable(f"no Ray cluster answers at {where}: is it up, and is this its dashboard?") from error
        except (RuntimeError, requests.exceptions.RequestException) as error:
            # of a traceback from the cluster, the error
            lines = [line for line in str(error).splitlines() if len(line.strip()) > 1] or [type(error).__name__]
            kind = Unreachable if re.search(r"status code 5\d\d", lines[0]) else SmecError
            raise kind(f"the cluster at {where} refuses: {safe_line(lines[-1].strip(), 500)}") from error


def follow(client: JobClient, job_id: str, patience: float) -> JobDetails:
    """Prints a job's log until the job ends.

    Args:
        client: the cluster.
        job_id: the job; also one that has ended.
        patience: seconds for which the cluster may be out of reach.

    Returns:
        The job, ended.

    Raises:
        SmecError: the cluster was out of reach for longer, or has lost the job.
    """
    return asyncio.run(_follow(client, job_id, patience))


async def _follow(client: JobClient, job_id: str, patience: float) -> JobDetails:
    # beside the log, the job is asked after: a connection to a machine that is gone may stay open and silent
    log = asyncio.create_task(client.print_log(job_id, 0))
    heard = time.monotonic()
    try:
        while True:
            await asyncio.wait({log}, timeout=POLL_SECONDS)
            try:
                info = await asyncio.to_thread(client.info, job_id)
            except Unreachable as error:
                silence = time.monotonic() - heard
                if silence > patience:
                    raise SmecError(
                        f"the cluster at {client.shown_address} has not answered for {silence:.0f} s; job {job_id} may "
                        "go on there, and the same command follows it again"
                    ) from error
                await asyncio.sleep(RETRY_SECONDS)
                continue
            heard = time.monotonic()
            printed, is_whole = log.result() if log.done() else (0, True)
            if log.done() and (not is_whole or not info.status.is_terminal()):
                await asyncio.sleep(RETRY_SECONDS)
                log = asyncio.create_task(client.print_log(job_id, printed))
            if info.status.is_terminal():
                await asyncio.wait({log}, timeout=DRAIN_SECONDS)
                return info
    finally:
        log.cancel()
