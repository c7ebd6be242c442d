"""Pages of experiments: what is written, and what of the page before is not left."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.experiment.page import Page, ResultTable, gain_text, write_page


def test_files_of_the_page_before_do_not_stay_beside_the_new_ones(tmp_path: Path) -> None:
    def page(value: str, *names: str) -> Page:
        tables = [ResultTable(name, name, pd.DataFrame([{"method": "pca", "8": value}])) for name in names]
        return Page("Title", "Lead.", [], tables, {})

    (tmp_path / "notes.csv").write_text("of the user")
    write_page(page(".1", "gains", "gains-seen"), tmp_path, "smec", [], [0], as_latex=True)
    before = {"gains.csv", "gains.tex", "gains-seen.csv", "gains-seen.tex"}
    assert before <= {file.name for file in tmp_path.iterdir()}
    write_page(page(".2", "gains"), tmp_path, "smec", [], [0])
    assert {file.name for file in tmp_path.iterdir()} == {"notes.csv", "gains.csv", "README.md", ".files.json"}
    assert ".2" in (tmp_path / "gains.csv").read_text()


def test_a_gain_of_one_query_has_no_interval() -> None:
    assert gain_text(np.array([0.2])) == "+0.2000"
    assert gain_text(np.array([0.2, 0.0])) == "+0.1000 ± 0.1960"
