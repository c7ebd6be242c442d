"""Quality of a model on a dataset, beside truncation, PCA and the frozen embeddings.

Shapes: Q queries, N documents of a block, D dims.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smec_core.data.dataset import HELD_OUT, Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable, unit_rows
from smec_core.data.seen import LEAST_QUERIES, SeenDocuments
from smec_core.data.uri import public_uri
from smec_core.errors import InputError
from smec_core.evaluation.dev_set import HELD_OUT_DOCS, NEIGHBOURS
from smec_core.evaluation.metrics import SEARCH_DEPTH, Matrices, PrefixSearch, gains_of, measure_queries, ndcg, recall
from smec_core.evaluation.significance import advice, query_interval, share_interval
from smec_core.model.model import Model
from smec_core.model.pca import Gram, block_rotation

Encode = Callable[[Tensor], Tensor]
Parts = Callable[[Callable[[int, int], Any], int], list[Any]]
"""Runs some work on ranges of so many rows, which together are all of them; gives its results in order."""


class Sides(NamedTuple):
    """What embeds the two sides of a search; cosines between the two must mean something at every prefix."""

    queries: Encode
    documents: Encode

    @classmethod
    def same(cls, encode: Encode) -> "Sides":
        """One encoder for both."""
        return cls(encode, encode)


def in_one_part(work: Callable[[int, int], Any], rows: int) -> list[Any]:
    """All rows at once, in this process."""
    return [work(0, rows)]


def default_split(dataset: Dataset) -> str | None:
    """The split to evaluate on where none is named: test, else dev, else what was held out; None without any."""
    return next((split for split in ("test", "dev", HELD_OUT) if split in dataset.splits), None)


def evaluate(
    dataset: Dataset,
    model: Model,
    split: str | None,
    baselines: bool = False,
    parts: Parts = in_one_part,
    docs_DD: Tensor | None = None,
) -> dict[str, Any]:
    """Scores every usable prefix of a model.

    Args:
        dataset: what to search and with what.
        model: the model.
        split: judgements to score by; None scores, without judgements, how many of the ten nearest documents (by the
            original embeddings) of a sample of documents are also their ten nearest at the prefix.
        baselines: score truncation, PCA and the original embeddings too.
        parts: how the passes over the corpus are divided; their results are merged.
        docs_DD: second moment (D, D) of the unit documents, where it is known: PCA then takes no pass of its own.

    Returns:
        `split` and `queries`, a dict of prefix to value for each measure, and `baselines`: the first measure of
        `truncation` and `pca` by prefix, and of `full`. `intervals` are the 95 % intervals over the queries, low and
        high, by prefix: of the first measure, with baselines also of its share of `full` (`kept`) and of its gain over
        `truncation` and `pca`; there are none for a single query. `seen` and `unseen` hold the same for the queries
        that have a relevant document which the model has learnt from, and for the others, where the model knows what
        it has learnt from; ids decide, so on other data than it was trained on these parts mean nothing. Where fewer
        than LEAST_QUERIES are unseen, `unseen_documents` holds the same for a search among the other documents alone.
        `advice` is what to do where nothing is gained, else None.

    Raises:
        InputError: the split is not there, or the dims do not fit.
    """
    check_fit(dataset, model, split)
    systems: dict[str, Encode] = {"model": model.encode}
    if baselines:
        systems |= baseline_encoders(_corpus_moment(dataset, parts) if docs_DD is None else docs_DD)
    if split is None:
        values = _neighbour_values(dataset, systems, model.dims, parts)
        report = {"split": None} | _figures(values, model.input_dim)
        return report | {"advice": advice(report)}
    judgements = dataset.splits[split].with_positives()
    seen_Q, unseen = None, None
    if model.seen is not None:
        seen_Q = model.seen.seen_queries(judgements, dataset.ids[0])
        if seen_Q.any() and np.count_nonzero(~seen_Q) < LEAST_QUERIES:
            unseen = _among_unseen(dataset, judgements, model.seen)
    values, *others = _judged_values(dataset, systems, model.dims, judgements, parts, unseen)
    report = {"split": split} | _figures(values, model.input_dim)
    if seen_Q is not None:
        report["seen"], report["unseen"] = (_figures(values, model.input_dim, keep) for keep in (seen_Q, ~seen_Q))
    for found in others:
        report["unseen_documents"] = _figures(found, model.input_dim)
    return report | {"advice": advice(report)}


class _Among(NamedTuple):
    """A search among the documents that are not seen.

    Attributes:
        judgements: of these documents.
        seen: the others.
    """

    judgements: Judgements
    seen: SeenDocuments


def _among_unseen(dataset: Dataset, judgements: Judgements, seen: SeenDocuments) -> _Among | None:
    """The search for unseen documents among themselves; None where no query has a relevant one."""
    row_U, place_J = np.unique(judgements.doc_row_J, return_inverse=True)
    keep_J = ~seen.has(dataset.ids[0].ids_of(row_U))[place_J]
    row_J = judgements.query_row_Q[judgements.query_J][keep_J]
    pairs = (row_J, judgements.doc_row_J[keep_J], judgements.score_J[keep_J])
    left = Judgements.from_pairs(*pairs, judgements.own_doc_of).with_positives()
    return _Among(left, seen) if len(left) else None


def _figures(
    values: Mapping[str, Mapping[str, Mapping[int, Tensor]]], input_dim: int, keep_Q: np.ndarray | None = None
) -> dict[str, Any]:
    """Figures of a report, over all queries or some."""
    first = next(iter(values["model"]))
    queries = len(values["model"][first][input_dim])
    if keep_Q is not None:
        queries, keep = int(keep_Q.sum()), torch.from_numpy(keep_Q)
        values = {
            name: {one: {dim: value_Q[keep] for dim, value_Q in by_dim.items()} for one, by_dim in found.items()}
            for name, found in values.items()
        }
    report: dict[str, Any] = {"queries": queries}
    if not queries:
        return report
    report |= {measure: _means(by_dim) for measure, by_dim in values["model"].items()}
    if "truncation" in values:
        report["baselines"] = {name: _means(values[name][first]) for name in ("truncation", "pca")}
        report["baselines"]["full"] = report["baselines"]["truncation"][str(input_dim)]
    if queries > 1:
        by_system = {
            name: {dim: value_Q.numpy() for dim, value_Q in found[first].items()} for name, found in values.items()
        }
        report["intervals"] = _intervals(by_system, first, input_dim)
    return report


def _means(by_dim: Mapping[int, Tensor]) -> dict[str, float]:
    return {str(dim): value_Q.mean().item() for dim, value_Q in by_dim.items()}


def _intervals(values: Mapping[str, Mapping[int, np.ndarray]], measure: str, input_dim: int) -> dict[str, Any]:
    """95 % intervals over the queries; the systems answer the same ones, so that differences are of pairs."""

    def around(mean: float, half: float) -> list[float]:
        return [float(mean - half), float(mean + half)]

    model = values["model"]
    found: dict[str, Any] = {
        measure: {str(dim): around(value_Q.mean(), query_interval(value_Q)) for dim, value_Q in model.items()}
    }
    if "truncation" not in values:
        return found
    full_Q = values["truncation"][input_dim]
    if full_Q.any():
        found["kept"] = {
            str(dim): around(value_Q.mean() / full_Q.mean(), share_interval(value_Q, full_Q))
            for dim, value_Q in model.items()
        }
    for name in ("truncation", "pca"):
        gain = {dim: value_Q - values[name][dim] for dim, value_Q in model.items()}
        found[name] = {str(dim): around(gain_Q.mean(), query_interval(gain_Q)) for dim, gain_Q in gain.items()}
    return found


def check_fit(dataset: Dataset, model: Model, split: str | None) -> None:
    """Refuses a model of other dims than the dataset, and a split that is not there.

    Raises:
        InputError: the split is not there, or the dims do not fit.
    """
    if dataset.dim != model.input_dim:
        raise InputError(f"{public_uri(dataset.uri)}: {dataset.dim} dims, but the model takes {model.input_dim}")
    if split is not None and split not in dataset.splits:
        present = ", ".join(dataset.splits) or "none"
        raise InputError(f"{public_uri(dataset.uri)}: there is no qrels/{split}; splits present: {present}")


def baseline_encoders(docs_DD: Tensor) -> dict[str, Encode]:
    """Truncation of the frozen embeddings, and PCA of their second moment, as encoders whose prefixes are compared."""
    rotation_DD = block_rotation(docs_DD)
    return {"truncation": lambda x_ND: x_ND, "pca": lambda x_ND: x_ND @ rotation_DD.T}


def query_scores(
    dataset: Dataset,
    systems: Mapping[str, Sides],
    dims: Sequence[int],
    judgements: Judgements,
    parts: Parts = in_one_part,
) -> dict[str, dict[int, np.ndarray]]:
    """nDCG@10 (Q) of each judged query, by system and prefix.

    Args:
        dataset: what to search and with what.
        systems: the systems to compare, by name; the two sides may be embedded by different models.
        dims: prefixes to score.
        judgements: those of the queries.
        parts: how the pass over the corpus is divided.
    """
    [found] = _judged_results(dataset, systems, dims, judgements, parts)
    return {
        name: {dim: ndcg(gains_of(row_Qk, judgements), judgements).numpy() for dim, row_Qk in by_dim.items()}
        for name, by_dim in found.items()
    }


def _judged_values(
    dataset: Dataset,
    systems: Mapping[str, Encode],
    dims: tuple[int, ...],
    judgements: Judgements,
    parts: Parts,
    among: _Among | None,
) -> list[dict[str, dict[str, dict[int, Tensor]]]]:
    """Value (Q) of each query, by system, measure and prefix; then the same of the search among some documents."""
    sides = {name: Sides.same(encode) for name, encode in systems.items()}
    some = [judgements] if among is None else [judgements, among.judgements]
    values: list[dict[str, dict[str, dict[int, Tensor]]]] = []
    for judged, results in zip(some, _judged_results(dataset, sides, dims, judgements, parts, among), strict=True):
        values.append({})
        for name, found in results.items():
            by_dim = {dim: measure_queries(rows, judged) for dim, rows in found.items()}
            values[-1][name] = {key: {dim: by_dim[dim][key] for dim in dims} for key in by_dim[dims[0]]}
    return values


def _judged_results(
    dataset: Dataset,
    systems: Mapping[str, Sides],
    dims: Sequence[int],
    judgements: Judgements,
    parts: Parts,
    among: _Among | None = None,
) -> list[dict[str, dict[int, Tensor]]]:
    """Rows (Q, SEARCH_DEPTH) of the documents that each judged query finds, by system and prefix; see above."""
    some = [judgements] if among is None else [judgements, among.judgements]
    searches = [_searches(dataset, systems, dims, judged) for judged in some]
    documents = {name: sides.documents for name, sides in systems.items()}
    _search_corpus(dataset, documents, searches, parts, None if among is None else among.seen)
    return [{name: search.results() for name, search in by_name.items()} for by_name in searches]


def _searches(
    dataset: Dataset, systems: Mapping[str, Sides], dims: Sequence[int], judgements: Judgements
) -> dict[str, PrefixSearch]:
    x_QD = read_rows(dataset.queries, judgements.query_row_Q)
    own = judgements.own_doc_row_Q
    own_row_Q = None if own is None else torch.from_numpy(own)
    return {name: PrefixSearch(sides.queries(x_QD), dims, SEARCH_DEPTH, own_row_Q) for name, sides in systems.items()}


def _neighbour_values(
    dataset: Dataset, systems: Mapping[str, Encode], dims: tuple[int, ...], parts: Parts
) -> dict[str, dict[str, dict[int, Tensor]]]:
    rows = np.random.default_rng(0).permutation(dataset.corpus.rows)[:HELD_OUT_DOCS]
    own_row_Q = torch.from_numpy(rows)
    x_QD = read_rows(dataset.corpus, rows)
    searches = {name: PrefixSearch(encode(x_QD), dims, NEIGHBOURS, own_row_Q) for name, encode in systems.items()}
    full = PrefixSearch(x_QD, [dataset.dim], NEIGHBOURS, own_row_Q)
    _search_corpus(dataset, {**systems, "": lambda x_ND: x_ND}, [{**searches, "": full}], parts)
    nearest_Qk = full.results()[dataset.dim].numpy()
    query = np.repeat(np.arange(len(nearest_Qk)), nearest_Qk.shape[1])
    found = nearest_Qk.reshape(-1) >= 0
    truth = Judgements.from_pairs(query[found], nearest_Qk.reshape(-1)[found], np.ones(found.sum(), np.float32))
    return {
        name: {
            f"neighbour_recall@{NEIGHBOURS}": {
                dim: recall(gains_of(row_Qk, truth), truth, NEIGHBOURS)
                for dim, row_Qk in sorted(search.results().items(), reverse=True)
            }
        }
        for name, search in searches.items()
    }


def _search_corpus(
    dataset: Dataset,
    systems: Mapping[str, Encode],
    searches: Sequence[Mapping[str, PrefixSearch]],
    parts: Parts,
    seen: SeenDocuments | None = None,
) -> None:
    """Searches all documents; the second searches, where there are any, only those that are not seen."""

    def search(start: int, stop: int) -> list[dict[str, dict[int, tuple[Tensor, ...]]]]:
        matrices = Matrices()
        whole, *others = [{name: one.fresh(matrices) for name, one in some.items()} for some in searches]
        for block in dataset.corpus.blocks(start, stop):
            row_N, x_ND = torch.arange(len(block.ids)) + block.row, torch.from_numpy(unit_rows(block.vectors_ND))
            keep_N = None if seen is None else torch.from_numpy(~seen.has(block.ids.to_pylist()))
            for name, one in whole.items():
                d_ND = systems[name](x_ND)
                one.add(row_N, d_ND)
                for some in others:
                    assert keep_N is not None
                    some[name].add(row_N[keep_N], d_ND[keep_N])
        return [{name: one.best for name, one in some.items()} for some in (whole, *others)]

    for found in parts(search, dataset.corpus.rows):
        for some, best in zip(searches, found, strict=True):
            for name, search_of in some.items():
                search_of.merge(best[name])


def _corpus_moment(dataset: Dataset, parts: Parts) -> Tensor:
    def add(start: int, stop: int) -> Gram:
        gram = Gram(dataset.dim)
        for _, x_ND in unit_blocks(dataset.corpus, start, stop):
            gram.add(x_ND)
        return gram

    first, *others = parts(add, dataset.corpus.rows)
    for gram in others:
        first.sum_DD += gram.sum_DD
    return first.sum_DD


def unit_blocks(table: EmbeddingTable, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Blocks of unit vectors of a table, each with the global row of its first."""
    for block in table.blocks(start, stop):
        yield block.row, torch.from_numpy(unit_rows(block.vectors_ND))


def read_rows(table: EmbeddingTable, row_Q: np.ndarray) -> Tensor:
    """Unit vectors (Q, D) of the named global rows, in that order, in one pass over the table."""
    found_QD = torch.empty(len(row_Q), table.dim)
    order = np.argsort(row_Q)
    for row, x_ND in unit_blocks(table):
        low, high = np.searchsorted(row_Q[order], [row, row + len(x_ND)])
        found_QD[order[low:high]] = x_ND[row_Q[order[low:high]] - row]
    return found_QD
