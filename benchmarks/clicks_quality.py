"""What is lost where a model learns from clicks instead of the judgements behind them.

    python -m benchmarks.clicks DATA FOLDER
    smec judge FOLDER/clicks FOLDER/data
    python -m benchmarks.clicks_quality FOLDER --dims 384,192,96,48,24 --seeds 0,1,2

trains on the judgements of FOLDER/data and on those of FOLDER/truth, in this process, and compares both with nDCG@10
on the true test judgements.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from pipelines.cli.settings import resolve
from pipelines.console import say
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.evaluation.corpus_search import Sides, query_scores
from smec_core.model.model import Model
from smec_core.training.scanned import load_training_data
from smec_core.training.schedule import prefix_dims
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import Hooks, train

SYSTEMS = {"truth": "true judgements", "data": "clicks"}


def trained(dataset: Dataset, config: TrainConfig) -> Model:
    """Trains in this process."""
    result = train(load_training_data(dataset, config), config, NullTracker(), Hooks(say=say))
    return Model(result.stages, dataset.dim, {"dims": prefix_dims(dataset.dim, config.dims)}, {})


def measure(truth: Dataset, model: Model) -> dict[int, float]:
    """Mean nDCG@10 on the true test judgements, by dim."""
    systems = {"model": Sides.same(model.encode)}
    scores = query_scores(truth, systems, model.dims, truth.splits["test"].with_positives())
    return {dim: float(scores["model"][dim].mean()) for dim in sorted(model.dims, reverse=True)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="as benchmarks.clicks has written it")
    parser.add_argument("--dims", required=True, help="as for smec train")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--on", default="truth,data", help="what to learn from: truth, data, or both")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of smec train")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    # what a training loads leaves room for others on the machine
    torch.set_num_threads(1)
    truth = Dataset.open(str(args.folder / "truth"))
    found: dict[str, list[dict[int, float]]] = {}
    for name in args.on.split(","):
        dataset = Dataset.open(str(args.folder / name))
        for seed in args.seeds.split(","):
            config = resolve(TrainConfig, {"dims": args.dims, "seed": int(seed)}, assignments=args.set)
            runs = found.setdefault(name, [])
            runs.append(measure(truth, trained(dataset, config)))
            say(f"{SYSTEMS.get(name, name)}, seed {seed}: {json.dumps(runs[-1])}")
    print(f"nDCG@10 on {len(truth.splits['test'].with_positives())} true test queries, mean over seeds {args.seeds}")
    dims = list(next(iter(found.values()))[0])
    print(f"{'learnt from':>16} {'mean':>6} " + " ".join(f"{dim:>6}" for dim in dims) + "   mean of each seed")
    for name, runs in found.items():
        by_dim = [mean(run[dim] for run in runs) for dim in dims]
        each = " ".join(f"{mean(run.values()):.4f}" for run in runs)
        cells = " ".join(f"{value:>6.4f}" for value in by_dim)
        print(f"{SYSTEMS.get(name, name):>16} {mean(by_dim):>6.4f} {cells}   {each}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
