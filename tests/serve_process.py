"""`smec serve` as a process of its own."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.kills import Process, descendants, take_interrupts

WAIT_SECONDS = 180


class Service(NamedTuple):
    """A server that listens on a port of this machine."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replicas(self) -> list[Process]:
        return [found for found in descendants(self.process.pid) if found.title.startswith("ray::ServeReplica")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve_command(model: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "serve", "--model", str(model), "--port", str(port)]


@contextmanager
def serving(model: Path, folder: Path, *settings: str) -> Iterator[Service]:
    """Starts the server with settings as key=value, and waits until it listens."""
    port, log = free_port(), folder / "serve.log"
    command = serve_command(model, port) + [part for setting in settings for part in ("--set", setting)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=take_interrupts)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while "serving at" not in log.read_text() and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert f"serving at http://127.0.0.1:{port};" in log.read_text(), log.read_text()
        yield Service(server, port, log)
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
        server.wait()
