"""A page about trainings without judgements: what queries that nobody has judged are worth, beside PCA.

python -m benchmarks.unjudged --data DATA --dims 384,192,96,48,24 --out results/unjudged-scifact

Of DATA only the judgements of the split that is scored are used, and only to score. Systems: what `smec train` makes of
all other queries; the same with the paper's loss, which keeps documents' neighbours and takes no queries; PCA of the
documents; truncation.

Shapes: Q queries.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.cli.settings import resolve
from pipelines.console import say
from pipelines.experiment.page import Page, ResultTable, describe, gain_text, write_page
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.errors import SmecError
from smec_core.evaluation.corpus_search import Sides, query_scores
from smec_core.evaluation.evaluate import corpus_baselines
from smec_core.training.fit import fit_on
from smec_core.training.schedule import prefix_dims

TAUGHT, PAPER, PCA, TRUNCATION = "smec train", "the paper's loss", "PCA", "truncation"

Scores = dict[str, dict[int, np.ndarray]]
"""nDCG@10 (Q) by system and dim, the mean over the seeds."""


def measure(dataset: Dataset, configs: Sequence[TrainConfig], split: str) -> tuple[Scores, pd.DataFrame]:
    """Trains and scores.

    Args:
        dataset: with judgements of the split.
        configs: settings of the method, one a seed.
        split: what is scored.

    Returns:
        The scores, and a row a system, seed and dim.
    """
    judged = dataset.splits[split].with_positives()
    unjudged, dims = replace(dataset, splits={split: judged}), prefix_dims(dataset.dim, configs[0].dims)
    baselines = corpus_baselines(dataset)
    systems = {PCA: Sides.same(baselines["pca"]), TRUNCATION: Sides.same(baselines["truncation"])}
    found = {name: [scores] for name, scores in query_scores(dataset, systems, dims, judged).items()}
    for config in configs:
        for name, changes in ((TAUGHT, {}), (PAPER, {"unsupervised": "cosines"})):
            model = fit_on(unjudged, config.model_copy(update=changes), progress=False, is_evaluated=False)
            scores = query_scores(dataset, {name: Sides.same(model.encode)}, dims, judged)[name]
            found.setdefault(name, []).append(scores)
            say(f"{name}, seed {config.seed}: {' '.join(f'{scores[dim].mean():.4f}' for dim in dims)}")
    rows = [
        {"system": name, "seed": config.seed, "dim": dim, "ndcg@10": scores[dim].mean()}
        for name, runs in found.items()
        for config, scores in zip(configs, runs, strict=False)
        for dim in dims
    ]
    means = {name: {dim: np.mean([run[dim] for run in runs], axis=0) for dim in dims} for name, runs in found.items()}
    return means, pd.DataFrame(rows)


def page_of(scores: Scores, frame: pd.DataFrame, name: str, queries: int, taught: int) -> Page:
    """Tables, and what is to be seen in them."""
    dims = list(scores[PCA])
    table = [
        {"system": system, **{str(dim): f"{scores[system][dim].mean():.4f}" for dim in dims}}
        for system in (TAUGHT, PAPER, PCA, TRUNCATION)
    ]
    gains: list[dict[str, Any]] = []
    for system in (TAUGHT, PAPER):
        by_dim = {dim: scores[system][dim] - scores[PCA][dim] for dim in dims}
        gains.append({"system": system} | {str(dim): gain_text(gain_Q) for dim, gain_Q in by_dim.items()})
    mean = {system: np.mean([by_dim[dim].mean() for dim in dims]) for system, by_dim in scores.items()}
    return Page(
        title=f"Without judgements, {name}",
        lead=(
            f"nDCG@10 on {queries} judged queries, whose judgements only score. {taught} other queries have none: "
            "`smec train` learns from what the full vectors find for them. The paper's loss learns from documents."
        ),
        findings=[
            f"Mean over the dims: {', '.join(f'{system} {value:.4f}' for system, value in mean.items())}.",
            "The full dims of both keep the cosines of the originals, as PCA's do.",
        ],
        tables=[
            ResultTable("ndcg", "nDCG@10, mean over the seeds", pd.DataFrame(table)),
            ResultTable("gains", "Gain on PCA, with its 95 % interval over the queries", pd.DataFrame(gains)),
        ],
        figures={},
        data={"scores": frame},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset folder or URI")
    parser.add_argument("--dims", required=True, help="as of smec train")
    parser.add_argument("--out", required=True, type=Path, help="folder for the page and its tables")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"], help="the queries that are scored")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of smec train")
    args = parser.parse_args(arguments)
    try:
        print(_make(args))
    except SmecError as error:
        sys.exit(f"unjudged: {error}")


def _make(args: argparse.Namespace) -> Path:
    dataset = Dataset.open(args.data)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    configs = [resolve(TrainConfig, {"dims": args.dims, "seed": seed}, assignments=args.set) for seed in seeds]
    scores, frame = measure(dataset, configs, args.split)
    name = public_uri(args.data).rstrip("/").rsplit("/", 1)[-1]
    words = ["python", "-m", "benchmarks.unjudged", "--data", name, "--dims", args.dims, "--seeds", args.seeds]
    words += ["--out", "OUT", *(["--split", args.split] if args.split != "test" else [])]
    command = shlex.join([*words, *(word for item in args.set for word in ("--set", item))])
    queries = len(dataset.splits[args.split].with_positives())
    page = page_of(scores, frame, name, queries, dataset.queries.rows - queries)
    return write_page(page, args.out, command, [describe(name, dataset)], seeds)


if __name__ == "__main__":
    main()
