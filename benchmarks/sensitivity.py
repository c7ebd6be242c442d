"""How much each setting matters: one changed at a time, on test, against the defaults, over several seeds.

python -m benchmarks.sensitivity --data DATA --dims 384,192,96,48,24 [--seeds 0,1,2] [--values tau=0.1,10 ...]

--set SETTING=VALUE changes what the others are compared with.

Gains are paired: of each test query, the mean over the seeds; in brackets half the 95 % interval over the queries.
Every training is `smec train`'s, first pass and refit, in one process; as many run at once as there are CPUs.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from pipelines.data.source import Source, scan_data
from pipelines.runtime.cluster import connect
from pipelines.train.scoring import Scored, gain_interval, gains, train_and_score
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.research.peers.peer import Smec
from smec_core.yaml_file import parse_value

VALUES = ["alpha=0.03,0.1,0.3,1", "tau=0.1,10", "lookahead=0,0.3,3"]


def gain(found: list[Scored], base: list[Scored], dims: list[int]) -> dict[str, Any]:
    """Mean over dims of each side, and the gain with its interval."""
    values = {
        name: [mean(one.mean(dim) for dim in dims) for one in some]
        for name, some in (("of", found), ("defaults", base))
    }
    return values | gain_interval(np.mean([gains(found, base, dim) for dim in dims], axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dims", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--values", nargs="*", default=VALUES, metavar="SETTING=VALUE,VALUE")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--json")
    args = parser.parse_args()
    changed = {name: parse_value(value) for name, _, value in (text.partition("=") for text in args.set)}
    base = TrainConfig.model_validate({"dims": args.dims} | changed)
    dataset = Dataset.open(args.data, exclude_self=base.exclude_self)
    methods = {"defaults": Smec({})}
    for text in args.values:
        name, _, values = text.partition("=")
        for value in values.split(","):
            methods[f"{name}={value}"] = Smec({name: parse_value(value)})
    connect(1)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    judgements = dataset.splits["test"].with_positives()
    found = train_and_score(Source.of(scan_data(dataset, base), base), methods, base, seeds, judgements, {"cpu": 1})
    dims = list(base.dims)
    print(f"{public_uri(args.data)}: test nDCG@10, mean gain over the defaults, seeds {args.seeds}")
    print(f"{'':>18} {'mean over dims':>16} " + " ".join(f"{dim:>8}" for dim in dims) + f" {'seconds':>8}")
    rows = {}
    for name, scored in found.items():
        over = gain(scored, found["defaults"], dims)
        by_dim = {dim: gain(scored, found["defaults"], [dim]) for dim in dims}
        seconds = mean(one.seconds for one in scored)
        if name == "defaults":
            cells = [f"{mean(one['of']):>8.4f}" for one in by_dim.values()]
            first = f"{mean(over['of']):>16.4f}"
        else:
            cells = [f"{one['gain']:>+8.4f}" for one in by_dim.values()]
            half = over["interval"][1] - over["gain"]
            first = f"{over['gain']:>+8.4f} ({half:.4f})"
        print(f"{name:>18} {first:>16} {' '.join(cells)} {seconds:>8.1f}")
        rows[name] = {"mean": over, "dims": by_dim, "seconds": seconds}
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
