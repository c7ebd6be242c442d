"""A page about bytes a vector against nDCG@10: a model's dims as every number type, by exact search.

python -m benchmarks.bytes_table --data DATA --model MODEL --out results/bytes-scifact
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipelines.console import say
from pipelines.evaluate.index import Bench
from pipelines.evaluate.indexes.store import Form, SearchPath, open_store
from pipelines.experiment.page import Page, ResultTable, describe, write_page
from pipelines.tracking.plots import BLUE, GREEN, GREY, INK, ORANGE, finish
from smec_core.config import VectorType
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.errors import SmecError
from smec_core.evaluation.evaluate import check_fit
from smec_core.model.files import load
from smec_core.model.model import Model

LEAST_BYTES, SHORTLIST = 12, 100
WAYS = {"float32": INK, "float16": GREY, "int8": BLUE, "binary": ORANGE, "binary, rescored by int8": GREEN}


def paths_of(model: Model) -> list[tuple[str, SearchPath]]:
    """Every way at every of the model's dims that takes at least LEAST_BYTES."""
    found: list[tuple[str, SearchPath]] = []
    for dim in model.dims:
        kinds: tuple[VectorType, ...] = ("float32", "float16", "int8", "binary")
        for kind in kinds:
            found.append((kind, SearchPath(Form(dim, kind))))
        found.append(("binary, rescored by int8", SearchPath(Form(dim, "binary"), Form(dim, "int8"), SHORTLIST)))
    return [(way, path) for way, path in found if _bytes(path) >= LEAST_BYTES]


def measure(data: str, model: Model, split: str, exclude_self: bool) -> pd.DataFrame:
    """A row each way: way, dims, bytes, ndcg@10, recall@100, by falling bytes and then quality; `best` of its bytes."""
    dataset = Dataset.open(data, exclude_self=exclude_self)
    check_fit(dataset, model, split)
    bench = Bench(dataset, model, dataset.splits[split], max(model.dims))
    rows = []
    for way, path in paths_of(model):
        say(str(path))
        figures = bench.measure_path(open_store("exact", path.first.dtype), path, threads=1)
        scores = {name: figures[name] for name in ("ndcg@10", "recall@100")}
        rows.append({"bytes": figures["bytes_per_vector"], "way": way, "dims": path.first.dim} | scores)
    frame = pd.DataFrame(rows).sort_values(["bytes", "ndcg@10"], ascending=False, kind="stable", ignore_index=True)
    frame["best"] = ~frame["bytes"].duplicated()
    return frame


def page_of(frame: pd.DataFrame, name: str, split: str, queries: int) -> Page:
    """Table, picture and what is to be seen in them."""
    whole = frame.iloc[0]
    findings = [f"{whole['bytes']} bytes ({whole['way']}, {whole['dims']} dims): {whole['ndcg@10']:.4f}."]
    for share in (0.99, 0.95, 0.9):
        enough = frame[frame["ndcg@10"] >= share * whole["ndcg@10"]].iloc[-1]
        enough = frame[(frame["bytes"] == enough["bytes"])].iloc[0]
        findings.append(
            f"{share:.0%} of that takes {enough['bytes']} bytes ({enough['way']}, {enough['dims']} dims: "
            f"{enough['ndcg@10']:.4f}), {whole['bytes'] / enough['bytes']:.0f} times fewer."
        )
    shown = pd.DataFrame(
        {
            "bytes a vector": frame["bytes"],
            "numbers": frame["way"],
            "dims": frame["dims"],
            "nDCG@10": frame["ndcg@10"].map("{:.4f}".format),
            "recall@100": frame["recall@100"].map("{:.4f}".format),
            "of its size": frame["best"].map({True: "best", False: ""}),
        }
    )
    return Page(
        title=f"Bytes a vector, {name}",
        lead=(
            f"Exact search of the {split} split ({queries} queries) by each of a model's dims as each number type; the "
            f"query stays float32. Where binary vectors are rescored, the first {SHORTLIST} are ordered again by int8 "
            "vectors, whose bytes count."
        ),
        findings=findings,
        tables=[ResultTable("bytes", "nDCG@10 by bytes a vector", shown)],
        figures={"bytes": picture(frame)},
        data={"scores": frame},
        picture="png",
    )


def picture(frame: pd.DataFrame) -> Figure:
    """Quality against bytes, a line each number type, and the best for the bytes as a level behind them."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    best = frame[frame["best"]].sort_values("bytes")
    # what nothing smaller is as good as
    front = best[best["ndcg@10"] > best["ndcg@10"].cummax().shift(fill_value=0.0)]
    axes.plot(front["bytes"], front["ndcg@10"], color="#e3b04b", linewidth=9, alpha=0.35, label="best for its bytes")
    for way, colour in WAYS.items():
        one = frame[frame["way"] == way]
        axes.plot(one["bytes"], one["ndcg@10"], label=way, color=colour, marker="o", linewidth=1.8, markersize=5)
    axes.set_xscale("log", base=2)
    sizes = sorted(frame["bytes"][frame["way"].isin(["float32", "binary"])].unique())
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.minorticks_off()
    axes.set_xlabel("bytes a vector")
    axes.set_ylabel("nDCG@10")
    finish(axes)
    return figure


def _bytes(path: SearchPath) -> int:
    return path.first.nbytes + (path.second.nbytes if path.second else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset folder or URI")
    parser.add_argument("--model", required=True, help="model folder, with int8 scales")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for README.md, bytes.csv, scores.csv, bytes.png"
    )
    parser.add_argument("--split", default="test", choices=["train", "dev", "test"])
    parser.add_argument("--exclude-self", action="store_true", help="as of smec evaluate")
    args = parser.parse_args(arguments)
    try:
        print(_make(args))
    except SmecError as error:
        sys.exit(f"bytes_table: {error}")


def _make(args: argparse.Namespace) -> Path:
    model = load(args.model)
    exclude_self = args.exclude_self or bool(model.config.get("train", {}).get("exclude_self"))
    frame = measure(args.data, model, args.split, exclude_self)
    dataset = Dataset.open(args.data)
    name = public_uri(args.data).rstrip("/").rsplit("/", 1)[-1]
    words = ["python", "-m", "benchmarks.bytes_table", "--data", name, "--model", "MODEL", "--out", "OUT"]
    words += ["--split", args.split] if args.split != "test" else []
    command = shlex.join([*words, *(["--exclude-self"] if args.exclude_self else [])])
    queries = len(dataset.splits[args.split].with_positives())
    page = page_of(frame, name, args.split, queries)
    return write_page(page, args.out, f"{command}    # model {model.fingerprint[:12]}", [describe(name, dataset)], [])


if __name__ == "__main__":
    main()
