"""Experiments on a real Ray cluster: pages, tables, reruns, refusals."""

import csv
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from pipelines.experiment import job as experiment
from pipelines.experiment.job import FIXED
from pipelines.experiment.methods import ablation, compared
from pipelines.experiment.settings import ExperimentSettings
from pipelines.experiment.tables import Results, part_tables, standing
from pipelines.train.scoring import Kept, Scored, as_finished
from smec_core.config import TrainConfig
from smec_core.errors import InputError
from tests.builders import write_dataset

QUICK = {"epochs": 2, "batch_size": 32, "negatives": 16, "queue_size": 100, "dims": "8,4", "seeds": 2}

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "pairs")


def _settings(kind: str, data: Path | str, out: Path, **changes: object) -> ExperimentSettings:
    # one that sets it itself does not take it
    quick = {name: value for name, value in QUICK.items() if name not in FIXED.get(kind, ())}
    return ExperimentSettings.model_validate(
        {"experiment": kind, "data": str(data), "out": str(out), **quick, **changes}
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.usefixtures("ray_cluster")
def test_methods_are_compared_and_a_rerun_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    methods = "truncation,pca,search-adaptor-tuned,parallel-mrl"
    settings = partial(_settings, "compare", dataset, methods=methods, epochs=10)
    figures = experiment.run(settings(tmp_path / "r"))
    scores = _rows(tmp_path / "r" / "scores.csv")
    names = {"truncation", "pca", "search-adaptor-tuned", "parallel-mrl", "smec"}
    assert {row["method"] for row in scores} == names
    assert len(scores) == len(names) * 2 * 3 * 4, "methods, seeds, dims, measures"
    gained = {row["method"]: row for row in figures["tables"]["pairs-gains"]}
    assert set(gained) == names - {"smec"}
    # judgements teach more than a fixed rotation of this data can give
    assert float(gained["pca"]["4"].split()[0]) > 0.05 and gained["pca"]["4"].endswith("*")
    page = (tmp_path / "r" / "README.md").read_text()
    for name in names:
        assert f"| {name} |" in page
    assert "pairs-quality.svg" in page and (tmp_path / "r" / "pairs-quality.svg").stat().st_size > 1000
    assert "smec experiment compare --data pairs --dims 8,4 --seeds 2" in page
    assert not list((tmp_path / "r").glob("*.tex"))

    # trained again, and read back from what is kept
    for out in ("again", "r"):
        before = {name: (tmp_path / "r" / name).read_bytes() for name in ("scores.csv", "pairs-quality.svg")}
        again = experiment.run(settings(tmp_path / out).model_copy(update={"latex": out == "r"}))
        assert again["tables"]["pairs-gains"] == figures["tables"]["pairs-gains"]
        assert {name: (tmp_path / out / name).read_bytes() for name in before} == before
    assert r"\begin{tabular}" in (tmp_path / "r" / "pairs-ndcg-10.tex").read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_finished_trainings_are_not_run_again(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _settings("compare", dataset, tmp_path, methods="pca", seeds=1)
    experiment.run(settings)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".trainings").iterdir()}
    assert len(before) == 2
    capsys.readouterr()
    experiment.run(settings.model_copy(update={"seeds": 2}))
    assert "2 of 4 trainings are finished already" in " ".join(capsys.readouterr().err.split())
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".trainings").iterdir()}
    assert len(after) == 4 and before.items() <= after.items()
    # its page is not that of another experiment
    other = write_dataset(tmp_path / "other" / "pairs", docs=300)
    for changes in ({"experiment": "labels"}, {"direction": "corpus-to-queries"}, {"data": (str(other),)}):
        with pytest.raises(InputError, match=r"out: .* holds compare on pairs \(\w{16}\); take another folder for "):
            experiment.run(settings.model_copy(update=changes))
    # other settings are other trainings
    experiment.run(settings.model_copy(update={"lr": 0.01}))
    assert len(list((tmp_path / ".trainings").iterdir())) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_several_datasets_have_a_mean_and_either_direction(tmp_path: Path) -> None:
    first, second = write_dataset(tmp_path / "first"), write_dataset(tmp_path / "second", docs=300)
    settings = _settings("compare", f"{first},{second}", tmp_path / "r", methods="pca", seeds=1)
    tables = experiment.run(settings)["tables"]
    values = [float(tables[f"{name}-ndcg-10"][0]["4"]) for name in ("first", "second")]
    assert float(tables["mean-ndcg-10"][0]["4"]) == pytest.approx(sum(values) / 2, abs=1e-4)
    turned = settings.model_copy(
        update={"direction": "corpus-to-queries", "data": (str(first),), "out": str(tmp_path / "t")}
    )
    page_tables = experiment.run(turned)["tables"]
    assert page_tables["first-reversed-ndcg-10"][0]["8"] != tables["first-ndcg-10"][0]["8"]
    assert "--set direction=corpus-to-queries" in (tmp_path / "t" / "README.md").read_text()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("kind", "table", "rows"),
    [
        ("ablation", "pairs-ndcg-10", 16),
        ("queue-size", "pairs-ndcg-10", 6),
        ("ware", "pairs-rotated-rate", 6),
        ("gradient-variance", "pairs-gradients", 4),
    ],
)
def test_every_experiment_writes_its_page(kind: str, table: str, rows: int, dataset: Path, tmp_path: Path) -> None:
    figures = experiment.run(_settings(kind, dataset, tmp_path, seeds=1))
    assert len(figures["tables"][table]) == rows
    page = (tmp_path / "README.md").read_text()
    assert f"smec experiment {kind} --data pairs" in page
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.usefixtures("ray_cluster")
def test_methods_learn_from_few_labels_and_from_all(dataset: Path, tmp_path: Path) -> None:
    settings = _settings("labels", dataset, tmp_path, seeds=1, methods="pca,parallel-mrl", labels="20,10", epochs=10)
    rows = {row["method"]: row for row in experiment.run(settings)["tables"]["pairs-ndcg-10"]}
    names = [f"{method}, {count}" for count in (10, 20, "all") for method in ("parallel-mrl", "smec")]
    assert list(rows) == ["pca", *names]
    assert float(rows["smec, 10"]["4"]) < float(rows["smec, all"]["4"]), "judgements teach"
    assert (tmp_path / "pairs-labels.svg").exists()
    with pytest.raises(InputError, match="labels: give numbers of queries, 2 at least"):
        experiment.run(settings.model_copy(update={"labels": (1,), "out": str(tmp_path / "other")}))


def test_the_parts_of_an_ablation_add_up() -> None:
    config = TrainConfig(dims=(8, 4))
    settings = {
        name: config.model_validate(config.model_dump() | dict(peer.changed)) for name, peer in ablation().items()
    }
    steps = [name for name in settings if name.startswith(("plain", "+"))]
    assert len(steps) == 6
    plain = settings["plain MRL"]
    assert (plain.schedule, plain.init, plain.temperature, plain.guard) == ("parallel", "pca", 1, False)
    assert settings["+ SMRL"].schedule == "sequential"
    assert settings["without guard"] == settings["+ temperature"]
    assert settings["smec"] == config


def test_all_rows_are_learnt_from_and_a_single_number_is_a_list(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an experiment scores models on all documents, and learns from all of them"):
        _settings("compare", dataset, tmp_path, sample_rows=100)
    assert _settings("labels", dataset, tmp_path, labels=25).labels == (25,)


@pytest.mark.usefixtures("ray_cluster")
def test_a_bad_row_of_the_last_dataset_is_found_before_the_first_training(dataset: Path, tmp_path: Path) -> None:
    bad = write_dataset(tmp_path / "bad")
    table = pq.read_table(bad / "corpus/part-0.parquet")
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    vectors[3, 0] = np.nan
    pq.write_table(table.set_column(1, "embedding", [list(map(list, vectors))]), bad / "corpus/part-0.parquet")
    with pytest.raises(InputError, match=r"part-0\.parquet: row 3, column embedding"):
        experiment.run(_settings("compare", f"{dataset},{bad}", tmp_path / "r", methods="pca", seeds=1))
    assert not (tmp_path / "r" / ".trainings").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "pca,best"}, "methods: best is unknown; known: truncation"),
        ({"kind": "ware", "methods": "pca"}, "methods: ware has methods of its own"),
        ({"kind": "queue-size", "queue_size": 30}, "queue_size: queue-size sets it itself; leave it out"),
        ({"kind": "gradient-variance", "init": "identity"}, "init: gradient-variance sets it itself"),
        ({"kind": "ware", "projection": "linear"}, "projection: ware sets it itself"),
        ({"kind": "gradient-variance", "dims": "8"}, "gradient-variance: compares the gradients of two dims or more"),
        ({"kind": "gradient-variance", "epochs": 0}, "gradient-variance: compares .* and at least one epoch"),
        ({"dims": "64,8"}, "dims: 64 is more than the 32 dims"),
        ({"out": "file"}, "out: file is a file; name a folder"),
        ({"out": "file/below"}, "out: file/below cannot be made"),
        ({"data": "mean"}, "data: files are named after the datasets, which must differ, also from 'mean': mean"),
    ],
)
def test_bad_settings_are_refused(
    changes: dict[str, Any], message: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean").symlink_to(dataset)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        experiment.run(_settings(**{"kind": "compare", "data": dataset, "out": tmp_path / "r", **changes}))


def test_without_faiss_its_pca_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "faiss-pca" in compared(None)
    monkeypatch.setattr("pipelines.experiment.methods.find_spec", lambda name: None)
    assert "faiss-pca" not in compared(None) and "pca" in compared(None)
    with pytest.raises(InputError, match="methods: faiss-pca needs FAISS"):
        compared(("faiss-pca",))


def test_findings_tell_above_from_level_and_below() -> None:
    # at 4, SMEC wins at as many queries as it loses at
    turn_Q = np.tile((0.1, -0.1), 25)
    means = {"smec": (0.5, 0.5, 0.4), "pca": (0.4, 0.5, 0.5), "truncation": (0.1, 0.1, 0.1)}
    found = {
        name: [Scored({"ndcg@10": {8: np.full(50, a), 4: turn_Q * (name == "smec") + b, 2: np.full(50, c)}}, 1.0, 1, 1)]
        for name, (a, b, c) in means.items()
    }
    assert standing(Results({"d": found}, range(1)), "d") == [
        "d: SMEC has the highest mean nDCG@10 at 8 (+0.1000 against pca, p < 0.001).",
        "d: SMEC is level with the best of the others at 4 (pca).",
        "d: SMEC is below the best of the others at 2 (-0.1000 against pca, p < 0.001).",
    ]


def test_seen_and_unseen_queries_have_tables_where_there_are_both() -> None:
    scored = [Scored({"ndcg@10": {8: np.where(np.arange(50) < 20, 0.9, 0.4)}}, 1.0, 1, 1)]
    seen = {"both": np.arange(50) < 20, "none": np.zeros(50, bool)}
    tables = part_tables(Results({name: {"smec": scored} for name in seen}, range(1), seen))
    assert [(table.name, table.frame["8"].tolist()) for table in tables] == [
        ("both-seen", ["0.9000"]),
        ("both-unseen", ["0.4000"]),
    ]
    assert "20 seen queries" in tables[0].caption


@pytest.mark.usefixtures("ray_cluster")
def test_where_one_task_fails_the_others_are_cancelled() -> None:
    @ray.remote(num_cpus=1)
    def task(fails: bool) -> None:
        if fails:
            raise InputError("bad")
        time.sleep(600)

    waiting = {task.remote(fails): fails for fails in (True, False, False, False)}
    others = [ref for ref, fails in waiting.items() if not fails]
    with pytest.raises(InputError, match="bad"):
        list(as_finished(waiting))
    for ref in others:
        with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
            ray.get(ref, timeout=60)


def test_data_without_test_judgements_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d")
    (data / "qrels" / "test.parquet").unlink()
    with pytest.raises(InputError, match=r"there is no qrels/test; methods learn"):
        experiment.run(_settings("compare", data, tmp_path / "r"))


@pytest.mark.usefixtures("ray_cluster")
def test_killed_in_the_middle_it_goes_on(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep: Callable[..., None] = Kept.write

    def interrupt(kept: Kept, path: Path, result: Any) -> None:
        keep(kept, path, result)
        raise KeyboardInterrupt

    settings = _settings("compare", dataset, tmp_path, methods="pca,random-projection", seeds=1)
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(settings)
    assert len(list((tmp_path / ".trainings").glob("*.json"))) == 1
    assert len(experiment.run(settings)["tables"]["pairs-gains"]) == 2
