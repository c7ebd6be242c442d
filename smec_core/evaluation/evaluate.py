"""Quality of a model on a dataset, beside truncation, PCA and the frozen embeddings.

Shapes: Q queries, N documents of a block, D dims.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smec_core.data.dataset import HELD_OUT, Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.seen import LEAST_QUERIES, SeenDocuments
from smec_core.data.segments import Segments
from smec_core.data.uri import public_uri
from smec_core.errors import InputError
from smec_core.evaluation.corpus_search import (
    CorpusSearch,
    Encode,
    JudgedSearch,
    Parts,
    Sides,
    in_one_part,
    read_rows,
    search_corpus,
    search_judged,
    unit_blocks,
)
from smec_core.evaluation.dev_set import HELD_OUT_DOCS, NEIGHBOURS
from smec_core.evaluation.metrics import gains_of, measure_queries, recall
from smec_core.evaluation.significance import advice, query_interval, share_interval
from smec_core.model.model import Model
from smec_core.model.pca import Gram, block_rotation

LEARNT = (
    "the model has learnt from these judgements, so new queries do worse than this; judge it by test, or by queries "
    "that its training has held out"
)


def default_split(dataset: Dataset) -> str | None:
    """The split to evaluate on where none is named: test, else what was held out, else dev; None without any."""
    return next((split for split in ("test", HELD_OUT, "dev") if split in dataset.splits), None)


def with_held_out(dataset: Dataset, model: Model, name: str) -> Dataset:
    """The data with the queries that a model's training has held out as a split of their own.

    Raises:
        InputError: it has held out none; `name` is the model's in the message.
    """
    share = model.config.get("hold_out")
    if not share:
        raise InputError(f"split: the training of {name} has held out no queries (smec train --set hold_out=0.2)")
    return dataset.holding_out(share)


def evaluate(
    dataset: Dataset,
    model: Model,
    split: str | None,
    baselines: Mapping[str, Encode] | None = None,
    parts: Parts = in_one_part,
    beside: Sequence[JudgedSearch] = (),
    segments: Sequence[Segments] = (),
) -> dict[str, Any]:
    """Scores every usable prefix of a model.

    Args:
        dataset: what to search and with what.
        model: the model.
        split: judgements to score by; None scores, without judgements, how many of the ten nearest documents (by the
            original embeddings) of a sample of documents are also their ten nearest at the prefix.
        baselines: truncation and PCA, to be scored too, as are the original embeddings; see `corpus_baselines`.
        parts: how the pass over the corpus is divided; the results are merged.
        beside: other searches of the same corpus, which share the pass over it where there is a split.
        segments: of the split's queries, to be told of as well.

    Returns:
        `split` and `queries`, a dict of prefix to value for each measure, and `baselines`: the first measure of
        `truncation` and `pca` by prefix, and of `full`. `intervals` are the 95 % intervals over the queries, low and
        high, by prefix: of the first measure, with baselines also of its share of `full` (`kept`) and of its gain over
        `truncation` and `pca`; there are none for a single query. `seen` and `unseen` hold the same for the queries
        that have a relevant document which the model has learnt from, and for the others, where the model knows what
        it has learnt from; ids decide, so on other data than it was trained on these parts mean nothing. Where fewer
        than LEAST_QUERIES are unseen, `unseen_documents` holds the same for a search among the other documents alone.
        `segments` has by column a list of them with `value` (None for null) and the same, most queries first.
        `learnt` is true, and else not there, where the model has learnt from these very judgements. `advice` is what to
        do then, or where nothing is gained, else None, as it is without judgements.

    Raises:
        InputError: the split is not there, or the dims do not fit.
    """
    check_fit(dataset, model, split)
    systems: dict[str, Encode] = {"model": model.encode, **(baselines or {})}
    if split is None:
        values = _neighbour_values(dataset, systems, model.dims, parts)
        report = {"split": None} | _figures(values, model.input_dim)
        # what brings queries to their documents may well move neighbours
        return report | {"advice": None}
    judgements = dataset.splits[split].with_positives()
    sides = {name: Sides.same(encode) for name, encode in systems.items()}
    searches = [JudgedSearch(judgements, sides, model.dims)]
    seen_Q = None
    if model.seen is not None:
        seen_Q = model.seen.seen_queries(judgements, dataset.ids[0])
        if seen_Q.any() and np.count_nonzero(~seen_Q) < LEAST_QUERIES:
            left = _of_unseen(dataset, judgements, model.seen)
            searches += [JudgedSearch(left, sides, model.dims, model.seen)] if len(left) else []
    search_judged(dataset, [*searches, *beside], parts)
    values, *others = map(_judged_values, searches)
    report = {"split": split} | _figures(values, model.input_dim)
    if seen_Q is not None:
        report["seen"], report["unseen"] = (
            _figures(values, model.input_dim, np.flatnonzero(keep)) for keep in (seen_Q, ~seen_Q)
        )
    for found in others:
        report["unseen_documents"] = _figures(found, model.input_dim)
    if segments:
        report["segments"] = {
            one.column: [
                {"value": value} | _figures(values, model.input_dim, rows)
                for value, rows in zip(one.values, one.rows, strict=True)
            ]
            for one in segments
        }
    if seen_Q is not None and seen_Q.all() and split in _learnt_splits(model):
        return report | {"learnt": True, "advice": LEARNT}
    return report | {"advice": advice(report)}


def _learnt_splits(model: Model) -> tuple[str, ...]:
    """From which a training learns: its last pass, and a warm start, from dev, too."""
    has_dev = model.config.get("train", {}).get("refit", False) or "warm_start" in model.config
    return ("train", "dev") if has_dev else ("train",)


def _of_unseen(dataset: Dataset, judgements: Judgements, seen: SeenDocuments) -> Judgements:
    """The judgements of documents that are not seen."""
    row_U, place_J = np.unique(judgements.doc_row_J, return_inverse=True)
    keep_J = ~seen.has(dataset.ids[0].ids_of(row_U))[place_J]
    row_J = judgements.query_row_Q[judgements.query_J][keep_J]
    pairs = (row_J, judgements.doc_row_J[keep_J], judgements.score_J[keep_J])
    return Judgements.from_pairs(*pairs, judgements.own_doc_of).with_positives()


def _figures(
    values: Mapping[str, Mapping[str, Mapping[int, Tensor]]], input_dim: int, rows: np.ndarray | None = None
) -> dict[str, Any]:
    """Figures of a report, over all queries or those of some rows."""
    first = next(iter(values["model"]))
    queries = len(values["model"][first][input_dim])
    if rows is not None:
        queries, keep = len(rows), torch.from_numpy(rows)
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
    """Refuses a model of other dims than the dataset, a split that is not there, and a corpus without neighbours.

    Raises:
        InputError: the split is not there, the dims do not fit, or there is no second document where neighbours are
            the measure.
    """
    if dataset.dim != model.input_dim:
        raise InputError(f"{public_uri(dataset.uri)}: {dataset.dim} dims, but the model takes {model.input_dim}")
    if split is not None and split not in dataset.splits:
        present = ", ".join(dataset.splits) or "none"
        raise InputError(f"{public_uri(dataset.uri)}: there is no qrels/{split}; splits present: {present}")
    if split is None and dataset.corpus.rows < 2:
        raise InputError(f"{public_uri(dataset.uri)}: has one document and no judgements; give more of either")


def baseline_encoders(docs_DD: Tensor) -> dict[str, Encode]:
    """Truncation of the frozen embeddings, and PCA of their second moment, as encoders whose prefixes are compared."""
    rotation_DD = block_rotation(docs_DD)
    return {"truncation": lambda x_ND: x_ND, "pca": lambda x_ND: x_ND @ rotation_DD.T}


def corpus_baselines(dataset: Dataset, parts: Parts = in_one_part) -> dict[str, Encode]:
    """The same, of the documents of a dataset, by a pass of its own over the corpus."""

    def add(start: int, stop: int) -> Generator[int, None, Gram]:
        gram = Gram(dataset.dim)
        for _, x_ND in unit_blocks(dataset.corpus, start, stop):
            gram.add(x_ND)
            yield len(x_ND)
        return gram

    first, *others = parts(add, dataset.corpus.rows)
    for gram in others:
        first.sum_DD += gram.sum_DD
    return baseline_encoders(first.sum_DD)


def _judged_values(search: JudgedSearch) -> dict[str, dict[str, dict[int, Tensor]]]:
    """Value (Q) of each query, by system, measure and prefix."""
    values = {}
    for name, found in search.results().items():
        by_dim = {dim: measure_queries(rows, search.judgements) for dim, rows in found.items()}
        measures = next(iter(by_dim.values()))
        values[name] = {key: {dim: by_dim[dim][key] for dim in sorted(by_dim, reverse=True)} for key in measures}
    return values


def _neighbour_values(
    dataset: Dataset, systems: Mapping[str, Encode], dims: tuple[int, ...], parts: Parts
) -> dict[str, dict[str, dict[int, Tensor]]]:
    rows = np.random.default_rng(0).permutation(dataset.corpus.rows)[:HELD_OUT_DOCS]
    x_QD = read_rows(dataset.corpus, rows)
    some = CorpusSearch({name: Sides.same(encode) for name, encode in systems.items()}, dims)
    full = CorpusSearch({"full": Sides.same(lambda x_ND: x_ND)}, [dataset.dim])
    for search in (some, full):
        search.begin(x_QD, NEIGHBOURS, torch.from_numpy(rows))
    search_corpus(dataset.corpus, [some, full], parts)
    nearest_Qk = full.results()["full"][dataset.dim].numpy()
    query = np.repeat(np.arange(len(nearest_Qk)), nearest_Qk.shape[1])
    found = nearest_Qk.reshape(-1) >= 0
    truth = Judgements.from_pairs(query[found], nearest_Qk.reshape(-1)[found], np.ones(found.sum(), np.float32))
    return {
        name: {
            f"neighbour_recall@{NEIGHBOURS}": {
                dim: recall(gains_of(row_Qk, truth), truth, NEIGHBOURS)
                for dim, row_Qk in sorted(by_dim.items(), reverse=True)
            }
        }
        for name, by_dim in some.results().items()
    }
