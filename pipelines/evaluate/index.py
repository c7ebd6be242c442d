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

from pipelines.console import say, show, warn
from pipelines.evaluate.indexes.store import STORES, Build, Form, NestedVectors, SearchIndex, SearchPath, open_store
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.uri import public_uri
from smec_core.errors import InputError
from smec_core.evaluation.evaluate import check_fit, read_rows, unit_blocks
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
    bench = Bench(dataset, model, dataset.splits[split], max(_widest(path) for path in paths))
    report: dict[str, Any] = {
        "index": settings.index,
        "split": split,
        "queries": len(bench.judgements),
        "corpus": dataset.corpus.rows,
        "threads": settings.threads,
        "versions": _versions(STORES[settings.index].packages),
        "paths": [],
    }
    for path in paths:
        say(f"{settings.index}: {path}")
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
        for form in (path.first, path.second):
            if form is not None and form.dtype == "int8" and not (store.narrows and form is path.first):
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
        """Encodes queries and corpus.

        Args:
            dataset: what to search and with what.
            model: the model.
            judgements: what to score by.
            dim: dims to keep of the nested vectors.
        """
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
        more = 0 if own_Q is None else 1
        # one more than is scored, since the query itself is found and taken out
        asked = path._replace(shortlist=path.shortlist + more)
        with build(asked, self._vectors, threads) as index:
            row_Qk = index.search(self._q_QD, SEARCH_DEPTH + more)
            ms = self._milliseconds(index)
            figures = {
                "bytes_per_vector": index.bytes_per_vector,
                "index_bytes": index.index_bytes,
                "bytes_read": None if index.cost is None else index.cost.bytes_read,
                "multiply_adds": None if index.cost is None else index.cost.multiply_adds,
            }
        if own_Q is not None:
            row_Qk = without(row_Qk, own_Q)
        scores = measure(torch.from_numpy(row_Qk), self.judgements)
        return {
            "path": str(path),
            "first": path.first._asdict(),
            "second": None if path.second is None else path.second._asdict(),
            "shortlist": None if path.second is None else path.shortlist,
            **{name: scores[name] for name in MEASURES},
            **figures,
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
    columns: list[tuple[str, str, Callable[[Any], str]]] = [
        ("nDCG\n@10", "ndcg@10", "{:.4f}".format),
        ("recall\n@100", "recall@100", "{:.4f}".format),
        ("bytes a\nvector", "bytes_per_vector", "{:,}".format),
        ("index\nbytes", "index_bytes", _short),
        ("bytes\nread", "bytes_read", _short),
        ("mult-\nadds", "multiply_adds", _short),
        ("ms\np50", "ms_p50", "{:.2f}".format),
        ("ms\np99", "ms_p99", "{:.2f}".format),
    ]
    columns = [column for column in columns if report["paths"][0][column[1]] is not None]
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in report["paths"]:
        table.add_row(one["path"].replace(", ", ",\n"), *(shown(one[name]) for _, name, shown in columns))
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


def _widest(path: SearchPath) -> int:
    return max(path.first.dim, path.second.dim if path.second else 0)
