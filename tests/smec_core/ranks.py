"""Real gloo processes that run a function together, any number of them up to MOST, as often as a test asks."""

import datetime
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smec_core.distributed.group import Group

MOST = 4
SECONDS = 120


def _work(rank: int, folder: str, connection: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    group, joined = Group(), ""
    while True:
        store, size, function, arguments = connection.recv()
        if store != joined:
            group, joined = _join(f"file://{folder}/{store}", rank, size), store
        try:
            connection.send((True, function(group, *arguments)))
        except Exception:
            connection.send((False, traceback.format_exc()))


def _join(store: str, rank: int, size: int) -> Group:
    if dist.is_initialized():
        dist.destroy_process_group()
    timeout = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)
    return Group()


class Ranks:
    """MOST processes that wait for work."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._size = self._groups = 0

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(group, *arguments)` gives on each rank of a group of `size`."""
        if size != self._size:
            self._size, self._groups = size, self._groups + 1
        for connection in self._connections[:size]:
            connection.send((f"group-{self._groups}", size, function, arguments))
        results = []
        for rank, connection in enumerate(self._connections[:size]):
            assert connection.poll(SECONDS), f"rank {rank} of {size} does not answer"
            done, result = connection.recv()
            assert done, f"rank {rank} of {size}: {result}"
            results.append(result)
        return results


@contextmanager
def start_ranks(folder: Path) -> Iterator[Ranks]:
    """Starts the processes, and ends them."""
    # forked from one process that has imported, but not used, what takes seconds to import; AdamW imports dynamo
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "hypothesis", "pytest", "smec_core.training.trainer"])
    pipes = [context.Pipe() for _ in range(MOST)]
    processes = [
        context.Process(target=_work, args=(rank, str(folder), theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        yield Ranks([ours for ours, _ in pipes])
    finally:
        for process in processes:
            process.kill()
