"""A dataset whose names and ids are made to forge lines, cells and elements, through the commands that show them."""

import csv
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from smec_core.data.parquet import embedding_column
from tests.builders import write_dataset
from tests.kills import REPOSITORY

FORGED = "\nsmec: FORGED\r\x1b[2K\x1b]0;title\x07\x9b31m\u202e"
NAME = f"=1+1|`x` [red]<b onclick=1><!--[y](z) $\\q$ Ünï漢{FORGED}"
"""Of the dataset's folder, and of its columns."""
COLUMNS = ("--set", f"columns.id={json.dumps(f'id{NAME}')}", "--set", f"columns.embedding={json.dumps(f'x{NAME}')}")
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_dataset(tmp_path / NAME, docs=120, queries=80, dim=8, files=2)
    for file in [*folder.rglob("*.parquet")]:
        table = pq.read_table(file)
        ids = {name: [f"{value}{NAME}" for value in table[name].to_pylist()] for name in table.column_names[:2]}
        if "embedding" in table.column_names:
            table = pa.table({f"id{NAME}": ids["id"], f"x{NAME}": table["embedding"], f"other{NAME}": ids["id"]})
        else:
            table = pa.table({**ids, "score": table["score"]})
        file.unlink()
        pq.write_table(table, file.with_name(f"{file.stem}{FORGED}.parquet") if "corpus" in str(file) else file)
    return folder


class Smec:
    """Runs commands, and looks at all that they print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What a command has printed."""
        ended = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            capture_output=True,
        )
        assert ended.returncode == code, ended.stderr.decode()
        text = (ended.stdout + ended.stderr).decode()
        assert not CONTROL.search(text), text
        for line in text.split("\n"):
            # in the middle of a line, or indented in a traceback
            assert not re.match(r"\W{0,3}(smec: )?FORGED", line), text
        if environment.get("SMEC_LOG") == "json":
            for line in ended.stderr.decode().splitlines():
                record = json.loads(line)
                assert not CONTROL.search(record["message"]), record
                assert "\n" not in record["message"]
        return text


class Elements(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.comments: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def test_names_forge_nothing_where_data_are_checked(data: Path, tmp_path: Path) -> None:
    smec = Smec(tmp_path)
    assert "Ünï漢" in smec("check", str(data), *COLUMNS)
    assert "it holds id=1+1" in smec("check", str(data), code=2)
    smec("check", str(data), *COLUMNS[:2], code=2, SMEC_LOG="json", SMEC_DEBUG="1")
    smec("verify", str(data), code=2)
    smec("train", "--dta", NAME, code=2)
    smec(NAME, code=2)


@pytest.mark.ray
@pytest.mark.slow
def test_names_forge_nothing_that_is_shown(data: Path, tmp_path: Path) -> None:
    smec, model = Smec(tmp_path), tmp_path / "model"
    train = ["train", "--data", str(data), "--dims", "4", "--out", str(model), *COLUMNS, "--set", "epochs=1"]
    smec(*train)
    smec("evaluate", "--data", str(data), "--model", str(model), "--baselines", *COLUMNS, SMEC_LOG="json")
    smec("report", str(model), "--out", str(tmp_path / "report.html"))
    _check_page(tmp_path / "report.html")
    _check_markdown((model / "README.md").read_text())

    # a row that is set apart, and the same where that ends the run
    broken = next(file for file in (data / "corpus").iterdir() if file.name.startswith("part-0"))
    table = pq.read_table(broken)
    x_ND = np.stack(table[f"x{NAME}"].to_numpy(zero_copy_only=False)).copy()
    x_ND[3, 2] = np.nan
    pq.write_table(table.set_column(1, f"x{NAME}", embedding_column(x_ND)), broken)
    compress = ["compress", "--model", str(model), "--input", str(data / "corpus"), "--dim", "4", *COLUMNS]
    smec(*compress, "--output", str(tmp_path / "a"), "--on-bad-row", "quarantine", "--set", "max_bad_rows=0.5")
    assert list((tmp_path / "a").rglob("_quarantine/*.parquet"))
    for environment in ({}, {"SMEC_DEBUG": "1"}, {"SMEC_LOG": "json", "SMEC_DEBUG": "1"}):
        text = smec(*compress, "--output", str(tmp_path / "b"), code=2, **environment)
        assert "row 3, column" in text
    smec("check", str(data), *COLUMNS, code=2)


@pytest.mark.ray
def test_names_forge_nothing_on_the_page_of_an_experiment(data: Path, tmp_path: Path) -> None:
    smec, out = Smec(tmp_path), tmp_path / "r"
    few = ["--dims", "4", "--seeds", "1", "--methods", "pca,truncation", "--set", "epochs=1", "--set", "latex=true"]
    smec("experiment", "compare", "--data", str(data), "--out", str(out), *few, *COLUMNS)

    _check_markdown((out / "README.md").read_text())
    tables = list(out.glob("*.csv"))
    assert tables
    for file in tables:
        assert not CONTROL.search(file.read_text().replace("\r\n", "\n")), file
        with file.open(newline="") as lines:
            for cell in (cell for row in csv.reader(lines) for cell in row):
                assert cell[:1] not in ("=", "@"), cell
                if cell[:1] in ("+", "-"):
                    float(cell.rstrip("*").split(" ± ")[0])
    assert "'=1+1" in (out / "scores.csv").read_text()
    for file in out.glob("*.tex"):
        text = file.read_text()
        assert not CONTROL.search(text), file
        assert r"\q" not in text.replace(r"\textbackslash{}q", "")
    for file in out.glob("*.svg"):
        assert not CONTROL.search(file.read_text()), file


def _check_page(file: Path) -> None:
    text = file.read_text()
    page = Elements(text)
    assert {"main", "table"} <= {tag for tag, _ in page.found}
    assert [tag for tag, _ in page.found].count("script") == 2
    assert not [(tag, names) for tag, names in page.found for name in names if name.startswith("on")]
    assert page.comments == []
    # plotly.js, which is our own, has some
    shown = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not CONTROL.search(shown)
    assert "\nsmec: FORGED" not in shown
    assert "Ünï漢" in shown


def _check_markdown(text: str) -> None:
    assert not CONTROL.search(text)
    assert "\nsmec: FORGED" not in text
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    page = Elements(html)
    assert not [(tag, names) for tag, names in page.found for name in names if name.startswith("on") or name == "href"]
    assert page.comments == []
