"""A page about bytes a vector against nDCG@10: a model's dims as every number type and as codes, by exact search.

python -m benchmarks.bytes_table --data DATA --model MODEL --out results/bytes-scifact
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipelines.console import say
from pipelines.evaluate.index import Bench
from pipelines.evaluate.indexes.store import (
    Build,
    Form,
    NestedVectors,
    SearchIndex,
    SearchPath,
    open_store,
    unit_prefix,
)
from pipelines.experiment.page import Page, ResultTable, describe, write_page
from pipelines.tracking.plots import BLUE, GREEN, GREY, INK, ORANGE, finish
from smec_core.config import VectorType
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.errors import SmecError
from smec_core.evaluation.corpus_search import read_rows
from smec_core.evaluation.evaluate import check_fit
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.model.quantize import learn_int8_scales

LEAST_BYTES, SHORTLIST = 12, 100
BUDGETS = (16, 32, 64, 128, 256)
RESCORED, PQ, RABITQ = "binary, rescored by int8", "product quantisation", "RaBitQ"
ORIGINALS = "originals, "
WAYS = {
    "float32": INK,
    "float16": GREY,
    "int8": BLUE,
    "binary": ORANGE,
    RESCORED: GREEN,
    PQ: "#8e5ea2",
    RABITQ: "#c45850",
}


class Way(NamedTuple):
    """A way to hold vectors: what it is called, what is searched, and FAISS's codes where those hold the vectors."""

    name: str
    path: SearchPath
    codes: str | None = None


def ways_of(model: Model) -> list[Way]:
    """Every way at every of the model's dims: number types of at least LEAST_BYTES, and codes."""
    found = []
    for dim in model.dims:
        kinds: tuple[VectorType, ...] = ("float32", "float16", "int8", "binary")
        found += [Way(kind, SearchPath(Form(dim, kind))) for kind in kinds]
        found.append(Way(RESCORED, SearchPath(Form(dim, "binary"), Form(dim, "int8"), SHORTLIST)))
        whole = SearchPath(Form(dim, "float32"))
        # a code has eight bits, and a code for each number would be int8 with more trouble
        found += [Way(PQ, whole, f"PQ{size}x8np") for size in BUDGETS if dim % size == 0 and dim > size]
        # its codes are for rotated numbers
        found.append(Way(RABITQ, whole, f"RR{dim},RaBitQ"))
    return [way for way in found if way.codes or sum(form.nbytes for form in way.path.forms) >= LEAST_BYTES]


class Codes(SearchIndex):
    """Codes of FAISS, which are learnt from the corpus; queries stay float32."""

    def __init__(self, path: SearchPath, vectors: NestedVectors, codes: str) -> None:
        super().__init__(path)
        z_Nd = vectors.held_as(path.first)
        self._index = faiss.index_factory(z_Nd.shape[1], codes, faiss.METRIC_INNER_PRODUCT)
        if isinstance(self._index, faiss.IndexPQ):
            # else it prints a line for each of its parts where the corpus is small
            self._index.pq.cp.min_points_per_centroid = 1
        self._index.train(z_Nd)
        self._index.add(z_Nd)
        self.bytes_per_vector = self._index.sa_code_size()
        self.index_bytes = self.bytes_per_vector * vectors.rows

    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """See `SearchIndex`."""
        found: np.ndarray = self._index.search(unit_prefix(q_QD, self.path.first.dim), k)[1]
        return found


def build_of(way: Way) -> Build:
    """What loads vectors for a way."""
    codes = way.codes
    if codes is None:
        return open_store("exact", way.path.first.dtype)
    return lambda path, vectors, threads: nullcontext(Codes(path, vectors, codes))


def measure(data: str, model: Model, split: str, exclude_self: bool) -> pd.DataFrame:
    """A row each way: way, dims, bytes, ndcg@10, recall@100, by falling bytes and then quality; `best` of its bytes."""
    # one thread: the same codes whatever the machine
    faiss.omp_set_num_threads(1)
    dataset = Dataset.open(data, exclude_self=exclude_self)
    check_fit(dataset, model, split)
    originals = Model([], dataset.dim, {"dims": [dataset.dim]}, {})
    corpus_ND = read_rows(dataset.corpus, np.arange(dataset.corpus.rows)).numpy()
    originals.config["int8_scales"] = learn_int8_scales(originals, corpus_ND)
    rows = []
    for of, held in (("", model), (ORIGINALS, originals)):
        bench = Bench(dataset, held, dataset.splits[split], max(held.dims))
        for way in ways_of(held):
            say(f"{of}{way.name}: {way.path}")
            figures = bench.measure_path(build_of(way), way.path, threads=1)
            scores = {name: figures[name] for name in ("ndcg@10", "recall@100")}
            rows.append(
                {"bytes": figures["bytes_per_vector"], "way": of + way.name, "dims": way.path.first.dim} | scores
            )
    frame = pd.DataFrame(rows).sort_values(["bytes", "ndcg@10"], ascending=False, kind="stable", ignore_index=True)
    frame["best"] = ~frame["bytes"].duplicated()
    return frame


def page_of(frame: pd.DataFrame, name: str, split: str, queries: int) -> Page:
    """Tables, picture and what is to be seen in them."""
    is_original = frame["way"].str.startswith(ORIGINALS)
    own = frame[~is_original]
    whole = own.iloc[0]
    findings = [f"{whole['bytes']} bytes ({whole['way']}, {whole['dims']} dims): {whole['ndcg@10']:.4f}."]
    for share in (0.99, 0.95, 0.9):
        enough = own[own["ndcg@10"] >= share * whole["ndcg@10"]].iloc[-1]
        enough = own[own["bytes"] == enough["bytes"]].iloc[0]
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
            f"Exact search of the {split} split ({queries} queries) by each of a model's dims as each number type, as "
            "product quantisation and as RaBitQ (both by FAISS, learnt from the corpus itself), and the original "
            "vectors in the same ways; the query stays float32. Where binary vectors are rescored, the first "
            f"{SHORTLIST} are ordered again by int8 vectors, whose bytes count."
        ),
        findings=findings,
        tables=[
            ResultTable("budgets", "The best that fits into so many bytes", budgets(frame)),
            ResultTable("bytes", "nDCG@10 by bytes a vector", shown),
        ],
        figures={"bytes": picture(frame)},
        data={"scores": frame},
        picture="png",
    )


def budgets(frame: pd.DataFrame) -> pd.DataFrame:
    """A row each budget of bytes: the best of the model, and the best of the original vectors."""
    is_original = frame["way"].str.startswith(ORIGINALS)
    rows = []
    for most in BUDGETS:
        row = {"bytes": str(most)}
        for title, of in (("smec", frame[~is_original]), ("originals", frame[is_original])):
            fits = of[of["bytes"] <= most]
            if fits.empty:
                row |= {title: "none fits", f"nDCG@10 of {title}": ""}
                continue
            best = fits.loc[fits["ndcg@10"].idxmax()]
            row[title] = f"{best['way'].removeprefix(ORIGINALS)}, {best['dims']} dims, {best['bytes']} bytes"
            row[f"nDCG@10 of {title}"] = f"{best['ndcg@10']:.4f}"
        rows.append(row)
    return pd.DataFrame(rows)


def picture(frame: pd.DataFrame) -> Figure:
    """Quality against bytes, a line each way, and the best for the bytes as a level behind them."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    best = frame[frame["best"]].sort_values("bytes")
    # what nothing smaller is as good as
    front = best[best["ndcg@10"] > best["ndcg@10"].cummax().shift(fill_value=0.0)]
    axes.plot(front["bytes"], front["ndcg@10"], color="#e3b04b", linewidth=9, alpha=0.35, label="best for its bytes")
    for way, colour in WAYS.items():
        # of ways that take as many bytes at several dims, the best dims
        one = frame[frame["way"] == way].drop_duplicates("bytes")
        axes.plot(one["bytes"], one["ndcg@10"], label=way, color=colour, marker="o", linewidth=1.8, markersize=5)
    originals = frame[frame["way"].str.startswith(ORIGINALS)].drop_duplicates("bytes")
    label = f"{ORIGINALS}best way"
    axes.plot(originals["bytes"], originals["ndcg@10"], label=label, color=INK, linestyle=":", marker="x")
    axes.set_xscale("log", base=2)
    sizes = sorted(frame["bytes"][frame["way"].isin(["float32", "binary"])].unique())
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.minorticks_off()
    axes.set_xlabel("bytes a vector")
    axes.set_ylabel("nDCG@10")
    finish(axes)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset folder or URI")
    parser.add_argument("--model", required=True, help="model folder, with int8 scales")
    parser.add_argument("--out", required=True, type=Path, help="folder for README.md, its tables (CSV) and picture")
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
