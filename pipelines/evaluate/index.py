"""`smec evaluate --index`: quality, bytes and time of whole searches in a real vector store.

Shapes: Q queries, N documents, D dims of the nested vectors, k results.
"""

import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from pipelines.console import say, show, telling, warn
from pipelines.evaluate.indexes.store import STORES, Build, Form, NestedVectors, SearchIndex, SearchPath, open_store
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.uri import public_uri
from smec_core.errors import InputError
from smec_core.evaluation.corpus_search import read_rows, unit_blocks
from smec_core.evaluation.evaluate import check_fit
from smec_core.evaluation.metrics import SEARCH_DEPTH, measure
from smec_core.model.model import Model

if TYPE_CHECKING:
    from pipelines.evaluate.settings import EvaluateSettings

MEASURES = ("ndcg@10", "recall@100")
WARM_UP, TIMED = 20, 1000
"""Queries before the clock starts, and at most so many with it."""


def run(settings: "EvaluateSettings", dataset: Dataset, model: Model, split: str | None) -> dict[str, Any]:
    """Measures the searches that the settings ask for, prints the table and returns the figures.

    Returns:
        index, split, queries, corpus (rows), threads, versions, and `paths`: see `measure_path`.

    Raises:
        InputError: settings, model, data and store do not fit together.
        SmecError: the store is not installed or not reached.
    """
    assert settings.index is not None
    if split is None:
        raise InputError(
            f"{public_uri(dataset.uri)}: no qrels/test or qrels/dev; --index scores searches by judgements"
        )
    check_fit(dataset, model, split)
    build = open_store(settings.index, settings.dtype)
    paths = search_paths(settings, model)
    with telling("encoding the corpus"):
        bench = Bench(dataset, model, dataset.splits[split], max(form.dim for path in paths for form in path.forms))
    report: dict[str, Any] = {
        "index": settings.index,
        "split": split,
        "queries": len(bench.judgements),
        "corpus": dataset.corpus.rows,
        "threads": settings.threads,
        "versions": _versions(STORES[settings.index].packages),
        "paths": [],
    }
    for number, path in enumerate(paths, start=1):
        say(f"{settings.index}: {path}")
        with telling(f"loading and searching {settings.index}, {number} of {len(paths)}"):
            report["paths"].append(bench.measure_path(build, path, settings.threads))
    show(path_table(report))
    return report


def search_paths(settings: "EvaluateSettings", model: Model) -> list[SearchPath]:
    """The searches to measure: each of the model's dims, or a funnel beside what it is made of.

    Raises:
        InputError: dims that the model or the store does not have.
    """
    assert settings.index is not None
    store = STORES[settings.index]

    def with_rescoring(dim: int) -> SearchPath:
        second = Form(dim, store.rescoring) if settings.dtype == "binary" else None
        return SearchPath(Form(dim, settings.dtype), second, settings.shortlist)

    if settings.funnel is None:
        paths = [with_rescoring(dim) for dim in model.dims]
    else:
        first, last = settings.funnel
        if last > model.input_dim:
            raise InputError(f"funnel: {last} dims, but the model has {model.input_dim}; trained dims: {model.dims}")
        for dim in settings.funnel:
            if dim not in model.dims:
                warn(f"the model was trained for {', '.join(map(str, model.dims))} dims, not for {dim}")
        whole = Form(last, "float32")
        funnel = SearchPath(Form(first, settings.dtype), whole, settings.shortlist)
        paths = [SearchPath(Form(first, settings.dtype)), SearchPath(whole), funnel]
    for dtype, most in store.most_dims.items():
        for path in [path for path in paths if path.first.dtype == dtype and path.first.dim > most]:
            warn(f"{settings.index} indexes {dtype} vectors of {most} dims at most; {path.first.dim} dims are left out")
            paths.remove(path)
    for path in paths:
        for form in path.forms:
            if form.dtype == "int8" and not (store.narrows and form is path.first):
                model.int8_scale(form.dim)  # refuses before anything is encoded
    if store.most_rows is not None and settings.shortlist > store.most_rows:
        raise InputError(
            f"shortlist: is {settings.shortlist}, but {settings.index} gives {store.most_rows} rows at most"
        )
    if not paths:
        raise InputError(f"index: {settings.index} holds none of the model's dims as {settings.dtype}")
    return paths


class Bench:
    """A dataset's encoded corpus and judged queries, on which searches are measured one after the other."""

    def __init__(self, dataset: Dataset, model: Model, judgements: Judgements, dim: int) -> None:
        """Encodes the judged queries and the corpus as nested vectors of `dim` dims."""
        self.judgements = judgements.with_positives()
        self._q_QD = model.encode(read_rows(dataset.queries, self.judgements.query_row_Q), dim).numpy()
        z_ND = np.empty((dataset.corpus.rows, dim), np.float32)
        for row, x_ND in unit_blocks(dataset.corpus):
            z_ND[row : row + len(x_ND)] = model.encode(x_ND, dim).numpy()
        self._vectors = NestedVectors(z_ND, model.int8_scale)

    def measure_path(self, build: Build, path: SearchPath, threads: int) -> dict[str, Any]:
        """Loads a store for one path, and measures it.

        Returns:
            `path` (name), `first`, `second` (dim and dtype) and `shortlist`, each measure, `bytes_per_vector`,
            `index_bytes`, `bytes_read` and `multiply_adds` a query (None but for exact search), and milliseconds a
            query `ms_p50`, `ms_p99`, one query at a time.
        """
        own_Q = self.judgements.own_doc_row_Q
        # one more than is scored, since the query itself is found and taken out
        more = 0 if own_Q is None else 1
        asked = path._replace(shortlist=path.shortlist + more)
        with build(asked, self._vectors, threads) as index:
            row_Qk = index.search(self._q_QD, SEARCH_DEPTH + more)
            ms = self._milliseconds(index)
            read, products = index.cost or (None, None)
        if own_Q is not None:
            row_Qk = without(row_Qk, own_Q)
        scores = measure(torch.from_numpy(row_Qk), self.judgements)
        return {
            "path": str(path),
            "first": path.first._asdict(),
            "second": None if path.second is None else path.second._asdict(),
            "shortlist": None if path.second is None else path.shortlist,
            **{name: scores[name] for name in MEASURES},
            "bytes_per_vector": index.bytes_per_vector,
            "index_bytes": index.index_bytes,
            "bytes_read": read,
            "multiply_adds": products,
            "ms_p50": float(np.percentile(ms, 50)),
            "ms_p99": float(np.percentile(ms, 99)),
        }

    def _milliseconds(self, index: SearchIndex) -> list[float]:
        queries = [self._q_QD[number : number + 1] for number in range(min(len(self._q_QD), TIMED))]
        for q_1D in queries[:WARM_UP]:
            index.search(q_1D, SEARCH_DEPTH)
        ms = []
        for q_1D in queries:
            started = time.perf_counter()
            index.search(q_1D, SEARCH_DEPTH)
            ms.append(1000 * (time.perf_counter() - started))
        return ms


def without(row_Qk: np.ndarray, own_Q: np.ndarray) -> np.ndarray:
    """Results (Q, k - 1) without each query's own row, -1 for none: what comes after it moves up."""
    is_own_Qk = (row_Qk == own_Q[:, None]) & (row_Qk >= 0)
    order_Qk = np.argsort(is_own_Qk, axis=1, kind="stable")
    kept: np.ndarray = np.take_along_axis(row_Qk, order_Qk, axis=1)[:, :-1]
    return kept


def path_table(report: dict[str, Any]) -> Table:
    """The figures for a terminal."""
    title = f"{report['index']}, {report['corpus']:,} documents, {report['split']}, {report['queries']} queries"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("path", no_wrap=True)
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "ndcg@10": ("nDCG\n@10", "{:.4f}".format),
        "recall@100": ("recall\n@100", "{:.4f}".format),
        "bytes_per_vector": ("bytes a\nvector", "{:,}".format),
        "index_bytes": ("index\nbytes", _short),
        "bytes_read": ("bytes\nread", _short),
        "multiply_adds": ("mult-\nadds", _short),
        "ms_p50": ("ms\np50", "{:.2f}".format),
        "ms_p99": ("ms\np99", "{:.2f}".format),
    }
    shown = {name: column for name, column in columns.items() if report["paths"][0][name] is not None}
    for heading, _ in shown.values():
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for one in report["paths"]:
        table.add_row(Text(one["path"].replace(", ", ",\n")), *(text(one[name]) for name, (_, text) in shown.items()))
    return table


def _short(number: int) -> str:
    """Three digits and the power of a thousand: 15.9 M."""
    value, unit = float(number), ""
    for unit in ("", " k", " M", " G", " T"):
        if value < 1000 or unit == " T":
            break
        value /= 1000
    return f"{value:.3g}{unit}" if unit else str(number)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    # FAISS is imported by another name than it is installed by
    distributions = metadata.packages_distributions()
    names = ("smec-ray", "torch", "numpy", *(distributions[package][0] for package in packages))
    return {name: metadata.version(name) for name in names}
