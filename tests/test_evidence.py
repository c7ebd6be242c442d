"""The tables of README and docs/evidence.md hold what the pages under results/ do, rounded to three digits."""

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
