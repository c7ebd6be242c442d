"""The query service in service: throughput and latency, too much load, slow clients, killed replicas, its end, memory.

    python -m benchmarks.serve_load [--replicas 1] [--seconds 10] [--set batch_wait_ms=0] [--json FILE]

`smec serve` runs as a process of its own, and so do its clients (benchmarks/serve_client.py), which send their next
request at once, also after a 503; at 10x they send ten times as many a second as the service has answered at 1x, and
then as many as they can. `encode` is a direct call of `Model.encode` in this process, and `json` what reading
a request and writing its answer takes inside a replica: all that a format of raw bytes could save there.

All of it shares the machine, so compare figures of one run only: ratios are printed for that.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.generated import SMEC, write_model
from smec_core.model.files import load
from smec_core.model.model import Model

INPUT_DIM, DIM = 768, 96
# connections, rows of each request
LOADS = [(1, 1), (8, 1), (32, 1), (8, 64)]
ONE, TEN = 32, 320
SLOW = 140
ENDING = 64
WARM_UP = 2000
START_SECONDS = 300


def vectors(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, INPUT_DIM), dtype=np.float32)


def body_of(rows: int) -> bytes:
    return json.dumps({"inputs": vectors(rows).tolist(), "dim": DIM}).encode()


def milliseconds(call: Callable[[], object], repeats: int = 300) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def direct(model: Model, rows: int) -> tuple[float, float]:
    """Milliseconds of Model.encode, and of JSON in and out, for one request."""
    from pydantic_core import to_json

    from pipelines.serve.queries import read

    x_ND, body = vectors(rows), body_of(rows)
    z_Nd = model.encode(x_ND, DIM)
    encode_ms = milliseconds(lambda: model.encode(x_ND, DIM))
    json_ms = milliseconds(lambda: read(body, model, rows)) + milliseconds(lambda: to_json(z_Nd.tolist()))
    return encode_ms, json_ms


class Service:
    """A running `smec serve`, and what is done to it."""

    def __init__(self, folder: Path, replicas: int, assignments: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.log = folder / "log"
        command = [*SMEC, "serve", "--model", str(folder / "model"), "--port", str(self.port)]
        command += ["--replicas", str(replicas), *(part for one in assignments for part in ("--set", one))]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        end = time.monotonic() + START_SECONDS
        while "serving at" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"smec serve did not start: {self.log.read_text()}")
            time.sleep(0.2)

    def ask(self, connections: int, rows: int = 1, **options: object) -> dict[str, Any]:
        """Runs clients to their end."""
        return self.result(self.start(connections, rows, **options))

    def start(self, connections: int, rows: int = 1, **options: object) -> "subprocess.Popen[str]":
        """Starts clients; options as benchmarks/serve_client.py has them."""
        body = self.folder / f"body-{rows}"
        body.write_bytes(body_of(rows))
        command = [sys.executable, "-m", "benchmarks.serve_client", str(self.port), str(body)]
        command += ["--connections", str(connections)]
        for name, value in options.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def result(self, client: "subprocess.Popen[str]") -> dict[str, Any]:
        """What clients have got, when they have ended."""
        found: dict[str, Any] = json.loads(client.communicate()[0])
        return found

    def processes(self) -> list[psutil.Process]:
        """The server, its replicas, and Ray."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def memory(self) -> float:
        """MiB of all processes, without what they share twice."""
        return sum(process.memory_full_info().uss for process in self.processes()) / 2**20

    def kill_replica(self) -> None:
        """Kills one as the kernel does where memory runs out."""
        replica = next(one for one in self.processes() if "".join(one.cmdline()[:1]).startswith("ray::ServeReplica"))
        os.kill(replica.pid, signal.SIGKILL)


def said(found: dict[str, Any]) -> str:
    """Statuses, how many of each and their latency, in one line."""
    parts = [
        f"{status}: {one['count']}, p50 {one['p50_ms']:.0f}, p99 {one['p99_ms']:.0f}, most {one['max_ms']:.0f} ms"
        for status, one in found.items()
        if status.isdigit()
    ]
    return "; ".join([*parts, f"cut: {found['cut']}"])


def show_loads(service: Service, model: Model, seconds: float) -> list[dict[str, float]]:
    print(
        f"{'at once':>8}{'rows':>6}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'encode ms':>11}{'ratio':>8}{'json ms':>9}"
    )
    loads = []
    for connections, rows in LOADS:
        found = service.ask(connections, rows, seconds=seconds)
        answered = found["200"]
        per_s = answered["count"] / found["seconds"]
        encode_ms, json_ms = direct(model, rows)
        ratio = per_s * encode_ms / 1000
        print(
            f"{connections:>8}{rows:>6}{per_s:>12.0f}{answered['p50_ms']:>9.2f}{answered['p99_ms']:>9.2f}"
            f"{encode_ms:>11.3f}{ratio:>8.3f}{json_ms:>9.3f}"
        )
        direct_ms = {"encode_ms": encode_ms, "json_ms": json_ms}
        loads.append({"at once": connections, "rows": rows, "per_s": per_s, **answered, **direct_ms, "ratio": ratio})
    return loads


def show_troubles(service: Service, seconds: float, requests: int) -> dict[str, Any]:
    """All that may befall a service, the worst last."""
    found: dict[str, Any] = {"1x": service.ask(ONE, seconds=seconds)}
    print(f"1x, {ONE} connections: {said(found['1x'])}")
    rate = 10 * found["1x"]["200"]["count"] / found["1x"]["seconds"]
    for name, pace in (("10x", {"rate": rate}), ("more", {})):
        found[name] = service.ask(TEN, seconds=seconds, health=True, **pace)
        sent = sum(one["count"] for status, one in found[name].items() if status.isdigit()) / found[name]["seconds"]
        print(f"{name}, {TEN} connections, {sent:.0f}/s: {said(found[name])}; /healthz {said(found[name]['health'])}")
        found[f"{name} ratio"] = found[name]["200"]["p99_ms"] / found["1x"]["200"]["p99_ms"]
        print(f"    p99 of those answered to that at 1x: {found[f'{name} ratio']:.2f}")

    found["slow"] = service.ask(ONE, seconds=seconds, slow=SLOW, health=True)
    print(f"1x beside {SLOW} that send half a body: {said(found['slow'])}; /healthz {said(found['slow']['health'])}")
    found["1x again"] = service.ask(ONE, seconds=seconds)
    alone = (found["1x"]["200"]["p99_ms"] + found["1x again"]["200"]["p99_ms"]) / 2
    found["slow ratio"] = found["slow"]["200"]["p99_ms"] / alone
    print(f"    p99 to that without them, before and after: {found['slow ratio']:.2f}")

    before = service.memory()
    service.ask(8, requests=requests, seconds=3600)
    found["memory"] = {"before": before, "after": service.memory()}
    print(
        f"memory before and after {requests} requests: {before:.0f} and {found['memory']['after']:.0f} MiB "
        f"({found['memory']['after'] / before - 1:+.1%})"
    )

    client = service.start(ONE, seconds=3 * seconds)
    time.sleep(seconds / 2)
    service.kill_replica()
    found["kill"] = service.result(client)
    print(f"a replica killed under {ONE} connections: {said(found['kill'])}")

    client = service.start(ENDING, seconds=3600, **{"until-closed": True})
    time.sleep(seconds / 2)
    service.process.terminate()
    found["end"] = service.result(client)
    print(f"SIGTERM under {ENDING} connections: {said(found['end'])}; exit code {service.process.wait(60)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--requests", type=int, default=20_000, help="between two looks at the memory")
    parser.add_argument("--set", action="append", default=[], help="a setting of smec serve, key=value")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="smec-") as name:
        write_model(Path(name) / "model", INPUT_DIM, DIM)
        model = load(Path(name) / "model")
        service = Service(Path(name), arguments.replicas, arguments.set)
        try:
            print(f"{INPUT_DIM} dims to {DIM}, replicas: {arguments.replicas}, settings: {arguments.set or 'defaults'}")
            service.ask(8, requests=WARM_UP, seconds=3600)
            found = {"loads": show_loads(service, model, arguments.seconds)}
            found |= show_troubles(service, arguments.seconds, arguments.requests)
        finally:
            service.process.terminate()
            service.process.wait()
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
