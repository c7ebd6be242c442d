"""How fast this machine does what a training is made of, measured in a moment."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

GEMM_DIMS = (64, 192, 512, 1024)
PASS_BYTES = 64 << 20
REPEATS = 3


@dataclass(frozen=True)
class MachineSpeed:
    """What was measured, on the threads or the device of one worker.

    Attributes:
        gemm: size of a matrix product, the cube root of its multiplications, and operations a second at it; ascending.
        bytes_per_s: bytes that elementwise work reads and writes.
        read_bytes_per_s: bytes of vectors that come out of the dataset's files, in one process.
    """

    gemm: tuple[tuple[float, float], ...]
    bytes_per_s: float
    read_bytes_per_s: float

    def product(self, rows: float, inner: float, columns: float) -> float:
        """Seconds of a matrix product."""
        multiplications = rows * inner * columns
        if multiplications <= 0:
            return 0.0
        sizes, rates = zip(*self.gemm, strict=True)
        rate = np.interp(np.log(multiplications) / 3, np.log(sizes), np.log(rates))
        return float(2 * multiplications / np.exp(rate))

    def moved(self, size: float) -> float:
        """Seconds of elementwise work that reads and writes so many bytes."""
        return size / self.bytes_per_s

    def slowed(self, factor: float) -> "MachineSpeed":
        """The same where each process gets a part of the machine only."""
        gemm = tuple((size, rate / factor) for size, rate in self.gemm)
        return MachineSpeed(gemm, self.bytes_per_s / factor, self.read_bytes_per_s / factor)


def measure_speed(rows: int, dim: int, threads: int, device: torch.device, read: Callable[[], int]) -> MachineSpeed:
    """Times products of a step's shape, one pass over memory and the reading of some rows; takes about a second.

    Args:
        rows: rows of a step.
        dim: D.
        threads: torch threads of a worker.
        device: where steps run.
        read: reads some vectors; gives how many bytes they have.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gemm = []
        for width in sorted({min(width, dim) for width in GEMM_DIMS}):
            x_NI, w_II = torch.ones(rows, width, device=device), torch.ones(width, width, device=device)
            out_NI = torch.empty(rows, width, device=device)
            seconds = _seconds(partial(torch.mm, x_NI, w_II, out=out_NI), device)
            gemm.append(((rows * width * width) ** (1 / 3), 2 * rows * width * width / seconds))
        source = torch.ones(PASS_BYTES // 4, device=device)
        target = torch.empty_like(source)
        moved = 2 * PASS_BYTES / _seconds(partial(torch.mul, source, 2.0, out=target), device)
    finally:
        torch.set_num_threads(before)
    started = time.perf_counter()
    size = read()
    return MachineSpeed(tuple(gemm), moved, size / (time.perf_counter() - started))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The best of some, after one to warm up: what else runs on the machine only slows it."""
    laps = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        laps.append(time.perf_counter() - started)
    return max(min(laps[1:]), 1e-9)
