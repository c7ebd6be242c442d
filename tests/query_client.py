"""A client of the query service, in a process of its own: concurrent requests of mixed dims, some of them bad.

    python -m tests.query_client URL INPUT_DIM OUT REQUESTS [STOP_FILE]

Request number i is the same for whoever calls `request(i, input_dim)`, so that a test can check what came back.
"""

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

THREADS = 8


class Request(NamedTuple):
    """What is sent, and what must come back: vectors of x_ND at `dim`, or a refusal that holds `cure`."""

    body: bytes
    x_ND: np.ndarray
    dim: int | None
    cure: str = ""


def request(number: int, input_dim: int) -> Request:
    """Of seven requests one is bad."""
    rng = np.random.default_rng(number)
    x_ND = rng.standard_normal((int(rng.integers(1, 5)), input_dim), dtype=np.float32) * 10
    # fewer dims of an untrained model may hold so little of a vector that float32's rounding shows
    dim = [None, input_dim // 4, input_dim // 4 + 1, input_dim // 2, input_dim - 1, input_dim][number % 6]
    wanted = {} if dim is None else {"dim": dim}
    if number % 7 == 6:
        return _bad(number // 7, x_ND, input_dim)
    return Request(json.dumps({"inputs": x_ND.tolist(), **wanted}).encode(), x_ND, dim)


def _bad(number: int, x_ND: np.ndarray, input_dim: int) -> Request:
    rows = x_ND.tolist()
    nan, huge, zero = [float("nan"), *rows[0][1:]], [1e39] * input_dim, [0] * input_dim
    bodies: list[tuple[Any, str]] = [
        (b'{"inputs": [[1, 2', "body: invalid JSON"),
        ({"inputs": [row[1:] for row in rows]}, f"this model takes {input_dim}"),
        ({"inputs": [*rows, rows[0][1:]]}, f"row {len(rows)} has {input_dim - 1} numbers"),
        ({"inputs": [*rows, nan]}, f"row {len(rows)} holds NaN or infinity, or a number too large for float32; fix"),
        ({"inputs": [huge, *rows]}, "row 0 holds NaN or infinity, or a number too large for float32"),
        ({"inputs": [*rows, zero]}, f"row {len(rows)} is a zero vector"),
        ({"inputs": rows, "dim": input_dim + 1}, f"dim: give 1 to {input_dim}"),
        ({"inputs": rows, "dim": 0}, f"dim: give 1 to {input_dim}"),
        ({"inputs": rows * 20}, "a request takes at most 16 rows"),
        ({"inputs": [[*rows[0][1:], "x"]]}, f"row 0, number {input_dim - 1} is not a number"),
        ({"inputs": rows[0]}, "row 0 is not a list"),
        ({"inputs": []}, "give at least one row"),
        ({"vectors": rows}, "is missing; send"),
        ({"inputs": rows, "dims": 2}, "dims: unknown key; did you mean"),
    ]
    body, cure = bodies[number % len(bodies)]
    return Request(body if isinstance(body, bytes) else json.dumps(body).encode(), x_ND, None, cure)


def post(url: str, body: bytes) -> tuple[int, Any]:
    """Status and JSON of an answer of /encode."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=120)
    try:
        connection.request("POST", f"{address.path}/encode", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def main(url: str, input_dim: str, out: str, requests: str, stop: str | None = None) -> None:
    """Sends the requests, until there are so many or the file `stop` is there, and writes [number, status, answer]."""

    def send(thread: int) -> list[list[Any]]:
        answers = []
        for number in range(thread, int(requests), THREADS):
            if stop and Path(stop).exists():
                break
            answers.append([number, *post(url, request(number, int(input_dim)).body)])
        return answers

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [answer for part in pool.map(send, range(THREADS)) for answer in part]
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
