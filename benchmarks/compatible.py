"""A page about new queries on old documents: a challenger trained to be compatible, beside one turned afterwards.

The champion learns from half of the train queries, the challengers from all; nothing is chosen on the test split.

python -m benchmarks.compatible --data DATA --dims 384,192,96,48,24 --models MODELS --out results/compatible-scifact
"""

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.cli.settings import resolve
from pipelines.console import say
from pipelines.experiment.page import Page, ResultTable, describe, write_page
from pipelines.storage.run_folder import digest
from pipelines.tracking.plots import BLUE, GREEN, GREY, INK, ORANGE, finish
from smec_core.config import COMPATIBLE, TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.errors import SmecError
from smec_core.evaluation.corpus_search import Encode, Sides, query_scores, unit_blocks
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.training.scanned import load_training_data
from smec_core.training.schedule import prefix_dims
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import Hooks, train
from smec_core.training.warm import WarmStart

OLD, ACROSS, MIXED, NEW = (
    "old queries, old documents",
    "compatible queries, old documents",
    "compatible queries, every other document old",
    "compatible queries, their documents",
)
WARM_OLD, WARM_NEW = "warm start alone, old documents", "warm start alone, its documents"
FRESH, TURNED, TURNED_BLOCKS = (
    "trained afresh, its documents",
    "trained afresh and turned as a whole, old documents",
    "trained afresh and turned block by block, old documents",
)
DRAWN = {OLD: GREY, ACROSS: BLUE, NEW: INK, TURNED: ORANGE, FRESH: GREEN}


def half_of_train(dataset: Dataset, seed: int) -> Dataset:
    """The same data with half of its train queries, chosen by a hash of seed and id."""
    ids = dataset.queries.ids().to_pylist()
    share_Q = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()[0] for name in ids]
    judged = dataset.splits["train"]
    return replace(
        dataset, splits={**dataset.splits, "train": judged.select(np.array(share_Q)[judged.query_row_Q] < 128)}
    )


def train_model(dataset: Dataset, config: TrainConfig, folder: Path, champion: Model | None = None) -> Model:
    """Trains in this process, or reads what an earlier call with the same data, settings and champion has trained."""
    judged = dataset.splits["train"]
    made_of = {"data": dataset.fingerprint, "judged": len(judged), "config": config.model_dump(mode="json")}
    made_of["champion"] = None if champion is None else champion.fingerprint
    folder = folder.with_name(f"{folder.name}-{digest(made_of)}")
    if not (folder / "config.json").exists():
        say(f"training {folder.name}")
        warm_start = None if champion is None else WarmStart.of(champion, "champion")
        data = load_training_data(dataset, config)
        trained = train(data, config, NullTracker(), Hooks(say=say), warm_start=warm_start)
        record = {"dims": prefix_dims(dataset.dim, config.dims), "train": config.model_dump(mode="json")}
        Model(trained.stages, dataset.dim, record, trained.metrics).save(folder)
    return load(folder)


def turned(model: Model, champion: Model, x_ND: Tensor, cuts: Sequence[int]) -> Encode:
    """A model's vectors, turned to those of the champion by the orthogonal matrices that do it best (Procrustes).

    Args:
        model: the model.
        champion: the champion.
        x_ND: embeddings that both are compared on.
        cuts: dims between two of them are turned among themselves, which leaves the model's own cosines as they are.
    """
    z_ND, old_ND = model.encode(x_ND).double(), champion.encode(x_ND).double()
    blocks = []
    for low, high in pairwise(cuts):
        left, _, right = torch.linalg.svd(old_ND[:, low:high].T @ z_ND[:, low:high])
        blocks.append(left @ right)
    rotation_DD = torch.block_diag(*blocks).float()
    return lambda x_ND: model.encode(x_ND) @ rotation_DD.T


def every_other(model: Model, champion: Model) -> Encode:
    """Documents of a corpus that is compressed anew by and by: every other one is the champion's still."""

    def encode(x_ND: Tensor) -> Tensor:
        is_new_N = torch.arange(len(x_ND)) % 2 == 1
        return torch.where(is_new_N[:, None], model.encode(x_ND), champion.encode(x_ND))

    return encode


def measure(dataset: Dataset, config: TrainConfig, split: str, models: Path) -> pd.DataFrame:
    """A row a system and dim: mean nDCG@10 of one seed."""
    seed, half = config.seed, half_of_train(dataset, config.seed)
    champion = train_model(half, config, models / f"champion-{seed}")
    fresh = train_model(dataset, config, models / f"fresh-{seed}")
    warm = train_model(dataset, config, models / f"warm-{seed}", champion)
    config = config.model_copy(update={"compatible": config.compatible or COMPATIBLE})
    compatible = train_model(dataset, config, models / f"compatible-{config.compatible:g}-{seed}", champion)
    x_ND = torch.cat([block_ND for _, block_ND in unit_blocks(dataset.corpus)])
    cuts = [0, *sorted(champion.dims)]
    old = champion.encode
    systems = {
        OLD: Sides.same(old),
        ACROSS: Sides(compatible.encode, old),
        MIXED: Sides(compatible.encode, every_other(compatible, champion)),
        NEW: Sides.same(compatible.encode),
        WARM_OLD: Sides(warm.encode, old),
        WARM_NEW: Sides.same(warm.encode),
        TURNED: Sides(turned(fresh, champion, x_ND, [0, dataset.dim]), old),
        TURNED_BLOCKS: Sides(turned(fresh, champion, x_ND, cuts), old),
        FRESH: Sides.same(fresh.encode),
    }
    scores = query_scores(dataset, systems, champion.dims, dataset.splits[split].with_positives())
    rows = [
        {"seed": seed, "system": name, "dim": dim, "ndcg@10": value_Q.mean()}
        for name, by_dim in scores.items()
        for dim, value_Q in by_dim.items()
    ]
    return pd.DataFrame(rows)


def page_of(frame: pd.DataFrame, name: str, split: str, queries: int, weight: float) -> Page:
    """Table, picture and what is to be seen in them."""
    by_dim = frame.groupby(["system", "dim"], sort=False)["ndcg@10"].mean().unstack("dim")
    by_dim = by_dim[sorted(by_dim.columns, reverse=True)]
    by_dim.insert(0, "mean", by_dim.mean(axis=1))
    dims = [dim for dim in by_dim.columns if dim != "mean"]

    def against(one: str, other: str) -> str:
        gain = by_dim.loc[one] - by_dim.loc[other]
        return f"{gain['mean']:+.4f}; {gain[dims].min():+.4f} to {gain[dims].max():+.4f} at the dims"

    seeds = (
        frame.groupby(["seed", "system"])["ndcg@10"].mean().unstack("system").map("{:.4f}".format)
        if frame["seed"].nunique() > 1
        else None
    )
    findings = [
        f"New queries on old documents against old queries on them: {against(ACROSS, OLD)}.",
        f"The same against a model that is trained afresh and then turned as a whole: {against(ACROSS, TURNED)}.",
        f"New queries on new documents against old on old: {against(NEW, OLD)}.",
        f"While half of the documents are compressed anew, against old on old: {against(MIXED, OLD)}.",
        f"What compatibility costs, new on new against a warm start alone: {against(NEW, WARM_NEW)}.",
        f"What a warm start costs or gains, it alone against trained afresh: {against(WARM_NEW, FRESH)}.",
    ]
    shown = by_dim.map("{:.4f}".format).reset_index().rename(columns={"system": "queries and documents"})
    tables = [ResultTable("compatible", "nDCG@10, mean over the seeds", shown.rename(columns=str))]
    if seeds is not None:
        shown = seeds.loc[:, list(DRAWN)].T.reset_index().rename(columns={"system": "mean over the dims, by seed"})
        tables.append(ResultTable("by_seed", "nDCG@10 of each seed", shown.rename(columns=str)))
    return Page(
        title=f"New queries on old documents, {name}",
        lead=(
            f"The champion (old) learnt from half of the train queries; challengers (new) from all, with the {split} "
            f"split ({queries} queries) seen by none. Compatible: `smec train --warm-start CHAMPION --compatible` "
            f"(weight {weight:g}). Turned: by the orthogonal matrix that takes its corpus vectors nearest to the "
            "champion's, in one piece, or block by block between one dim and the next, which leaves its own results "
            "as they are."
        ),
        findings=findings,
        tables=tables,
        figures={"compatible": picture(by_dim[dims])},
        data={"scores": frame},
        picture="png",
    )


def picture(by_dim: pd.DataFrame) -> Figure:
    """Quality against dims, a line a system."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for system, colour in DRAWN.items():
        axes.plot(by_dim.columns, by_dim.loc[system], label=system, color=colour, marker="o", markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(by_dim.columns), [str(dim) for dim in by_dim.columns])
    axes.minorticks_off()
    axes.set_xlabel("dims")
    axes.set_ylabel("nDCG@10")
    finish(axes)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset folder or URI, with train judgements")
    parser.add_argument("--dims", required=True, help="as of smec train")
    parser.add_argument("--out", required=True, type=Path, help="folder for the page, its tables and its picture")
    parser.add_argument(
        "--models", required=True, type=Path, help="folder for the models; those there are not retrained"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of smec train")
    args = parser.parse_args(arguments)
    try:
        print(_make(args))
    except SmecError as error:
        sys.exit(f"compatible: {error}")


def _make(args: argparse.Namespace) -> Path:
    # what a training loads leaves room for others on the machine
    torch.set_num_threads(1)
    dataset = Dataset.open(args.data)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    configs = [resolve(TrainConfig, {"dims": args.dims, "seed": seed}, assignments=args.set) for seed in seeds]
    frame = pd.concat([measure(dataset, config, args.split, args.models) for config in configs], ignore_index=True)
    name = public_uri(args.data).rstrip("/").rsplit("/", 1)[-1]
    words = ["python", "-m", "benchmarks.compatible", "--data", name, "--dims", args.dims, "--seeds", args.seeds]
    words += ["--models", "MODELS", "--out", "OUT", *(["--split", args.split] if args.split != "test" else [])]
    command = shlex.join([*words, *(word for item in args.set for word in ("--set", item))])
    page = page_of(
        frame, name, args.split, len(dataset.splits[args.split].with_positives()), configs[0].compatible or COMPATIBLE
    )
    return write_page(page, args.out, command, [describe(name, dataset)], seeds)


if __name__ == "__main__":
    main()
