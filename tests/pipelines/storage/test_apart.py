"""Where a job may not write: in the data that it reads, however the place is written."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.storage.apart import check_apart, check_apart_from_table
from smec_core.errors import InputError
from smec_core.yaml_file import dump
from tests.builders import write_dataset


@pytest.mark.parametrize("place", ["corpus", "corpus/a", "corpus.parquet/a", "queries.lance/a/b", "qrels/a"])
def test_a_place_in_a_table_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match=rf"^out: {tmp_path}/{place} lies in .*/{place.partition('/')[0]}, where it"):
        check_apart({"storage": None, "out": str(tmp_path / place)}, ["elsewhere", str(tmp_path)])


def test_a_place_beside_the_tables_is_free(tmp_path: Path) -> None:
    for place in ("model", "corpus-vectors", "../corpus/a", ".smec-runs"):
        check_apart({"out": f"{tmp_path}/d/{place}"}, [f"{tmp_path}/d"])


def test_a_published_folder_may_be_upgraded_in_place(tmp_path: Path) -> None:
    check_apart_from_table("output", f"{tmp_path}/vectors", f"{tmp_path}/vectors/")
    check_apart_from_table("output", f"{tmp_path}/vectors", f"{tmp_path}/vectors/v0001")
    with pytest.raises(InputError, match=r"output: .*/vectors/v0001 lies in .*/vectors, where"):
        check_apart_from_table("output", f"{tmp_path}/vectors/v0001", f"{tmp_path}/vectors")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("compress --model m --input d/corpus --output d/corpus/out", "output"),
        ("train --data d --dims 8 --out d/corpus/out", "out"),
        ("train --data d --dims 8 --out d/corpus/out --dry-run", "out"),
        ("train --data d --dims 8 --out m --storage d/corpus/out", "storage"),
        ("tune --space s.yaml --data d --dims 8 --out d/corpus/out", "out"),
        ("tune --space s.yaml --data d --dims 8 --out s --storage d/corpus/out", "storage"),
        ("experiment compare --data d --dims 8 --out d/corpus/out", "out"),
        ("retrain --config c --set publish.output=d/corpus/out", "publish.output"),
        ("retrain --config c --set storage=d/corpus/out", "storage"),
    ],
)
def test_every_job_refuses_it_first(words: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "d", docs=20, queries=10, dim=16)
    series = {"name": "s", "data": "d", "storage": "r", "train": {"dims": 8}, "publish": {"output": "o", "dim": 8}}
    (tmp_path / "c").write_text(dump(series))
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"smec: {key}: {tmp_path}/d/corpus/out lies in {tmp_path}/d/corpus, where")
    assert sorted(tmp_path.rglob("*")) == before
