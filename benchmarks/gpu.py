"""The training loop on a GPU: results against the CPU's, step time against its matrix products alone, memory.

    python -m benchmarks.gpu [--device cuda] [--input-dims 768,1536,3072] [--batches 128,1024,4096]
        [--queues 5000,65536] [--json FILE]

Without Ray, on random vectors; each stage with both losses and a full memory. Parts are timed with a wait for the
device after each, which a training does not do, so `step` is an upper bound. `limit` is the time of the products of
the same shapes on the same device; `tflops` is what the whole step reaches. `difference` is the largest one between
the vectors that a short training gives on the device and on the CPU, unit norm, at the smallest dim.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_time import measure, random_data, total
from smec_core.config import TrainConfig
from smec_core.distributed.resident import Node
from smec_core.model.adapter import apply_chain
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train

CHECK_DOCS, CHECK_QUERIES, CHECK_DIM = 2000, 600, 256


def difference(device: torch.device) -> float:
    """Largest difference of unit vectors at the smallest dim after a few epochs on both devices."""
    config = TrainConfig(dims=(64, 16), epochs=2, alpha=0.1, alpha_whole=0.1, queue_size=500)
    vectors = []
    for place in (device, torch.device("cpu")):
        data = random_data(CHECK_DOCS, CHECK_QUERIES, CHECK_DIM, Node(device=place))
        stages = [stage.to("cpu") for stage in train(data, config, NullTracker()).stages]
        z_ND = apply_chain(stages, data.docs.take(torch.arange(CHECK_DOCS)))
        vectors.append(torch.nn.functional.normalize(z_ND[:, : config.dims[-1]], dim=1))
    return float((vectors[0] - vectors[1]).abs().max())


def measure_one(device: torch.device, input_dim: int, batch: int, queue: int, steps: int) -> dict[str, Any]:
    """One setting: all stages together."""
    dims = (input_dim // 2, input_dim // 4, input_dim // 8)
    config = TrainConfig(dims=dims, batch_size=batch, negatives=batch, queue_size=queue, alpha=0.1, alpha_whole=0.1)
    # more documents than slots, and queries for a few steps an epoch
    data = random_data(queue + 4 * batch, 4 * batch + batch, input_dim, Node(device=device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows = measure(data, config, steps)
    summed = total(rows)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    setting = {"input_dim": input_dim, "batch": batch, "queue": queue}
    tflops = sum(row["gflop"] for row in rows) / 1e3 / summed["step"]
    return (
        setting
        | {"step": summed["step"], "limit": summed["limit"], "ratio": summed["ratio"], "tflops": tflops}
        | {
            "gib": peak,
            "stages": rows,
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--input-dims", default="768,1536,3072")
    parser.add_argument("--batches", default="128,1024,4096")
    parser.add_argument("--queues", default="5000,65536")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu tries the script")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    date = datetime.now(UTC).date().isoformat()
    print(f"{name}, torch {torch.__version__}, {date}; ms a step, all stages together")
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "date": date}
    report["difference"] = difference(device)
    print(f"largest difference to the CPU's vectors: {report['difference']:.1e}")
    print(f"{'dims':>5} {'batch':>5} {'queue':>6} {'step':>9} {'limit':>9} {'ratio':>6} {'TFLOPS':>7} {'GiB':>6}")
    report["settings"] = []
    sizes = ([int(one) for one in text.split(",")] for text in (args.input_dims, args.batches, args.queues))
    for input_dim, batch, queue in product(*sizes):
        row = measure_one(device, input_dim, batch, queue, args.steps)
        peak = "" if row["gib"] is None else f"{row['gib']:.1f}"
        print(
            f"{input_dim:>5} {batch:>5} {queue:>6} {1e3 * row['step']:>9.2f} {1e3 * row['limit']:>9.2f} "
            f"{row['ratio']:>6.2f} {row['tflops']:>7.2f} {peak:>6}",
            flush=True,
        )
        report["settings"].append(row)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
