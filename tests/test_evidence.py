"""The tables of README and docs hold what the pages under results/ do, rounded to three digits."""

import csv
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from tests.kills import REPOSITORY

METHODS = {
    "smec": "smec",
    "smec train": "smec",
    "`--preset fast`": "smec-fast",
    "closed form `within` in its own order": "within",
    "MRL": "parallel-mrl",
    "Matryoshka-Adaptor": "matryoshka-adaptor",
    "Matryoshka-Adaptor, tuned": "matryoshka-adaptor-tuned",
    "Search-Adaptor, tuned": "search-adaptor-tuned",
    "PCA": "pca",
    "truncation": "truncation",
}
SETS = {
    "SciFact": "scifact",
    "Fashion": "fashion",
    "MedQuAD": "medquad",
    "sample": "sample",
    "Two encoders": "scifact-1152",
}
COMPATIBLE = {
    "`model`, `model`": "old queries, old documents",
    "`--compatible`, `model`": "compatible queries, old documents",
    "`--compatible`, every other one `model`": "compatible queries, every other document old",
    "`--compatible`, `--compatible`": "compatible queries, their documents",
    "`--warm-start` alone, `model`": "warm start alone, old documents",
    "`--warm-start` alone, itself": "warm start alone, its documents",
    "trained afresh and turned to `model` (Procrustes), `model`": "trained afresh and turned as a whole, old documents",
    "trained afresh and turned to `model`, `model`": "trained afresh and turned as a whole, old documents",
    "trained afresh, itself": "trained afresh, its documents",
}
HALF = 0.0005 + 1e-9
"""What rounding to three digits takes or adds at most."""


class Row(NamedTuple):
    """A row of a table: what it is about, and its figures, by falling dims."""

    dataset: str
    part: str
    method: str
    figures: tuple[str, ...]


def tables(file: str) -> Iterator[list[list[str]]]:
    """The Markdown tables of a file, each a list of rows of cells."""
    found: list[list[str]] = []
    for line in [*(REPOSITORY / file).read_text().splitlines(), ""]:
        if line.startswith("|"):
            found.append([cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")])
        elif found:
            yield found
            found = []


def rows(file: str) -> Iterator[Row]:
    """The rows with figures of nDCG@10; a row that names a set, or a part of it, does so for those below it, too."""
    for table in tables(file):
        dataset = None
        for label, *cells in table:
            if named := re.match("|".join(SETS), label):
                dataset, part = SETS[named[0]], "ndcg-10"
            if said := re.search(r"\b(un)?seen\b", label):
                part = said[0]
            figures = tuple(cell for cell in cells if re.fullmatch(r"\.\d{3}", cell))
            if dataset is not None and figures:
                few = re.search(r" with (\d+)", label)
                yield Row(dataset, part, method_of(label) + (f", {few[1]}" if few else ""), figures)


def method_of(label: str) -> str:
    """The method that a row is about."""
    fits = [name for name in METHODS if label.startswith(name) or label.endswith(f": {name}")]
    assert fits, f"no method is known by the row {label!r}"
    return METHODS[max(fits, key=len)]


def on_pages(row: Row) -> Iterator[list[float]]:
    """What the pages say of a row's method."""
    for file in (REPOSITORY / "results").glob(f"*/{row.dataset}-{row.part}.csv"):
        with file.open(newline="") as lines:
            for method, *cells in csv.reader(lines):
                if method == row.method:
                    yield [float(cell.split(" ± ")[0]) for cell in cells]


@pytest.mark.parametrize("file", ["README.md", "docs/evidence.md"])
def test_figures_are_those_of_the_pages(file: str) -> None:
    found = list(rows(file))
    assert len(found) > 10
    for row in found:
        told = [float(figure) for figure in row.figures]
        pages = list(on_pages(row))
        # a page has four digits
        assert any(len(told) == len(page) and np.allclose(told, page, rtol=0, atol=0.00056) for page in pages), (
            row,
            pages,
        )


def table_of(file: str, head: str) -> list[list[str]]:
    """The one table of a file whose first cell is `head`: its rows, without those of the head."""
    (found,) = (table for table in tables(file) if table[0][0] == head)
    return found[2:]


def figures(cells: list[str]) -> list[float]:
    """The figures of a row; dims that a set does not have are left empty."""
    return [float(cell) for cell in cells if cell]


def means(page: str, columns: tuple[str, str]) -> dict[str, list[float]]:
    """The means over the seeds of a page's nDCG@10, by falling dims, of each system (or method)."""
    found: dict[str, dict[int, list[float]]] = {}
    with (REPOSITORY / "results" / page / "scores.csv").open(newline="") as lines:
        for line in csv.DictReader(lines):
            if line.get("measure", "ndcg@10") != "ndcg@10":
                continue
            of_system = found.setdefault(line[columns[0]], {})
            of_system.setdefault(int(line["dim"]), []).append(float(line[columns[1]]))
    return {
        system: [float(np.mean(scores[dim])) for dim in sorted(scores, reverse=True)]
        for system, scores in found.items()
    }


def assert_rounded(told: list[float], scores: list[float], row: list[str]) -> None:
    """Whether what is told are the scores to three digits."""
    assert len(told) == len(scores) and np.allclose(told, scores, rtol=0, atol=HALF), (row, scores)


def test_figures_without_judgements() -> None:
    rows = table_of("docs/train.md", "dims kept")
    assert len(rows) == 3 * 4
    for label, *cells in rows:
        if named := re.match("|".join(SETS), label):
            found = means(f"unjudged-{SETS[named[0]]}", ("system", "ndcg@10"))
        assert_rounded(figures(cells), found[label.split(": ")[-1]], [label, *cells])


def test_figures_of_warm_starts() -> None:
    found = {name: means(f"compatible-{name}", ("system", "ndcg@10")) for name in ("scifact", "fashion", "medquad")}
    rows = table_of("docs/train.md", "queries, documents")
    assert len(rows) == 8
    for label, *cells in rows:
        scores = found["scifact"][COMPATIBLE[label]]
        assert_rounded(figures(cells), [float(np.mean(scores)), *scores], [label, *cells])
    rows = table_of("docs/train.md", "mean nDCG@10 over the dims")
    assert len(rows) == 5
    for label, *cells in rows:
        scores = [float(np.mean(found[name][COMPATIBLE[label]])) for name in ("fashion", "medquad")]
        assert_rounded(figures(cells), scores, [label, *cells])


def test_figures_of_bytes() -> None:
    (rows,) = (table[2:] for table in tables("docs/compress.md") if table[0][:2] == ["bytes a vector", "16"])
    assert len(rows) == 8
    for label, *cells in rows:
        if named := re.match("|".join(SETS), label):
            path = REPOSITORY / "results" / f"bytes-{SETS[named[0]]}" / "budgets.csv"
        with path.open(newline="") as lines:
            scores = [float(line[f"nDCG@10 of {label.split(': ')[-1]}"]) for line in csv.DictReader(lines)]
        # a page has four digits
        assert np.allclose(figures(cells), scores, rtol=0, atol=HALF + 0.00005), (label, scores)


@pytest.mark.parametrize("name", ["fashion", "scifact"])
def test_figures_of_few_judgements(name: str) -> None:
    dims = {"fashion": "512", "scifact": "768"}[name]
    (rows,) = (table[2:] for table in tables("docs/evidence.md") if table[0][:3] == ["judged queries", "method", dims])
    assert len(rows) > 8
    found = means(f"labels-{name}", ("method", "value"))
    for judged, method, *cells in rows:
        key = METHODS[method.strip("*")] if judged == "none" else f"{METHODS[method]}, {judged.split()[0]}"
        assert_rounded(figures(cells), found[key], [judged, method, *cells])
