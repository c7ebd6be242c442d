"""Requests a second and latency of the query service, beside direct `Model.encode` calls in the same run.

    python -m benchmarks.serve_load [--replicas 1] [--requests 2000] [--set batch_wait_ms=0] [--json FILE]

Serve runs on a Ray of its own; the requests come from another process, over kept-open connections. `json` is what
reading a request and writing its answer takes inside a replica: all that a format of raw bytes could save there.
"""

import argparse
import http.client
import json
import logging
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.generated import write_model
from smec_core.model.files import load
from smec_core.model.model import Model

INPUT_DIM, DIM = 768, 96
# requests at a time, rows of each
LOADS = [(1, 1), (8, 1), (32, 1), (8, 64)]


def vectors(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, INPUT_DIM), dtype=np.float32)


def body_of(rows: int) -> bytes:
    return json.dumps({"inputs": vectors(rows).tolist(), "dim": DIM}).encode()


def ask(address: str, body: bytes, threads: int, requests: int) -> dict[str, float]:
    """Sends requests from `threads` connections; the first tenth is not counted."""

    def send(count: int) -> list[float]:
        connection = http.client.HTTPConnection(address, timeout=120)
        times = []
        for _ in range(count):
            started = time.perf_counter()
            connection.request("POST", "/encode", body)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}")
            times.append(time.perf_counter() - started)
        connection.close()
        return times

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(send, [max(1, requests // threads // 10)] * threads))
        started = time.perf_counter()
        times = [seconds for part in pool.map(send, [requests // threads] * threads) for seconds in part]
        seconds = time.perf_counter() - started
    p50, p99 = np.percentile(times, [50, 99])
    return {"per_s": len(times) / seconds, "p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


def milliseconds(call: object, repeats: int = 300) -> float:
    assert callable(call)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--requests", type=int, default=2000, help="requests of each load")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--set", action="append", default=[], help="a setting of smec serve, key=value")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ask", nargs=4, metavar=("ADDRESS", "ROWS", "THREADS", "REQUESTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        address, rows, threads, requests = arguments.ask
        print(json.dumps(ask(address, body_of(int(rows)), int(threads), int(requests))))
        return
    import ray

    from pipelines.cli.settings import resolve
    from pipelines.serve.job import run
    from pipelines.serve.settings import ServeSettings

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="smec-") as name:
        write_model(Path(name) / "model", INPUT_DIM, DIM)
        model = load(Path(name) / "model")
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        flags = {"model": f"{name}/model", "replicas": arguments.replicas, "port": arguments.port}
        run(resolve(ServeSettings, flags, assignments=arguments.set))
        print(f"{INPUT_DIM} dims to {DIM}, replicas: {arguments.replicas}, settings: {arguments.set or 'defaults'}")
        print(
            f"{'at once':>8}{'rows':>6}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}"
            f"{'encode ms':>11}{'ratio':>8}{'json ms':>9}"
        )
        loads = []
        for threads, rows in LOADS:
            requests = arguments.requests if rows == 1 else arguments.requests // 10
            command = [sys.executable, "-m", "benchmarks.serve_load", "--ask", f"127.0.0.1:{arguments.port}"]
            command += [str(rows), str(threads), str(requests)]
            asked = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            encode_ms, json_ms = direct(model, rows)
            ratio = asked["per_s"] * encode_ms / 1000
            direct_ms = {"encode_ms": encode_ms, "json_ms": json_ms}
            loads.append({"at once": threads, "rows": rows, **asked, **direct_ms, "ratio": ratio})
            print(
                f"{threads:>8}{rows:>6}{asked['per_s']:>12.0f}{asked['p50_ms']:>9.2f}{asked['p99_ms']:>9.2f}"
                f"{encode_ms:>11.3f}{ratio:>8.3f}{json_ms:>9.3f}"
            )
        ray.shutdown()
    if arguments.json:
        arguments.json.write_text(json.dumps({"loads": loads}, indent=2) + "\n")


if __name__ == "__main__":
    main()
