"""The main job on a real Ray cluster: train, evaluate, compress, and what is recorded on the way."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

import smec_core
from pipelines.compress import job as compress
from pipelines.compress.settings import CompressSettings
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.settings import EvaluateSettings
from pipelines.report import job as report
from pipelines.report.settings import ReportSettings
from pipelines.runtime.cluster import use_gpus
from pipelines.storage.lease import Holder
from pipelines.storage.run_folder import RunFolder
from pipelines.train import job as train
from pipelines.train.settings import TrainSettings
from smec_core.data import scan
from smec_core.data.versions import current
from smec_core.errors import InputError, SmecError
from tests.builders import write_dataset

REPOSITORY = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def _settings(data: Path, out: Path, **changes: object) -> TrainSettings:
    quick = {"epochs": 2, "batch_size": 32, "negatives": 16, "queue_size": 100, "dims": "8,4"}
    return TrainSettings.model_validate({"data": str(data), "out": str(out), **quick, **changes})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def model_folder(dataset: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    train.run(_settings(dataset, out, workers=2, name="recorded"))
    return out


def test_the_model_is_whole_and_says_how_it_was_made(model_folder: Path, dataset: Path) -> None:
    model = smec_core.load(model_folder)
    assert model.dims == (32, 8, 4)
    assert model.config["train"]["epochs"] == 2
    assert model.metrics["training"]["workers"] == 2
    assert {stage["dim"] for stage in model.metrics["stages"]} == {32, 16, 8, 4}
    assert set(model.metrics["evaluation"]["baselines"]) == {"truncation", "pca", "full"}
    steps = [json.loads(line)["step"] for line in (model_folder / "history.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert "| 4 |" in (model_folder / "README.md").read_text()


def test_evaluate_gives_what_train_recorded(model_folder: Path, dataset: Path) -> None:
    report = evaluate.run(EvaluateSettings(data=str(dataset), model=str(model_folder), split="test", baselines=True))
    assert report == smec_core.load(model_folder).metrics["evaluation"]


def test_evaluation_on_several_workers_is_that_of_one(model_folder: Path, dataset: Path) -> None:
    settings = EvaluateSettings(data=str(dataset), model=str(model_folder), workers=3)
    assert evaluate.run(settings) == evaluate.run(settings.model_copy(update={"workers": 1}))


def test_compressed_corpus_is_the_models_encoding(model_folder: Path, dataset: Path, tmp_path: Path) -> None:
    settings = CompressSettings(
        model=str(model_folder), input=str(dataset / "corpus"), output=str(tmp_path / "out"), dim=8
    )
    compress.run(settings)
    model = smec_core.load(model_folder)
    for part in sorted((dataset / "corpus").iterdir()):
        source, made = pq.read_table(part), pq.read_table(Path(current(str(tmp_path / "out"))) / part.name)
        assert made["id"].to_pylist() == source["id"].to_pylist()
        x_ND = np.array(source["embedding"].to_pylist(), np.float32)
        np.testing.assert_allclose(np.array(made["embedding"].to_pylist()), model.encode(x_ND, 8), atol=1e-6)


def test_one_and_two_workers_learn_the_same(model_folder: Path, dataset: Path, tmp_path: Path) -> None:
    train.run(_settings(dataset, tmp_path / "model", workers=1))
    one, two = ([json.loads(line) for line in _history(folder)] for folder in (tmp_path / "model", model_folder))
    assert [record["step"] for record in one] == [record["step"] for record in two]
    first = [(a["loss"], b["loss"]) for a, b in zip(one, two, strict=True) if "loss" in a][:20]
    for alone, together in first:
        assert alone == pytest.approx(together, abs=1e-4)


def test_a_training_on_a_sample_is_one_of_the_whole_data_in_all_else(
    dataset: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(dataset, tmp_path / "here", sample_rows=100, name="sampled")
    here = train.run(settings)
    model, whole = smec_core.load(tmp_path / "here"), smec_core.load(model_folder)
    assert (model.config["used"]["sample_rows"], whole.config["used"]["sample_rows"]) == (100, 400)
    assert model.fingerprint != whole.fingerprint
    # learnt from the same judgements, and scored by a search of the whole corpus beside the same PCA
    assert model.seen is not None and whole.seen is not None
    assert np.array_equal(model.seen.hash_S, whole.seen.hash_S)
    for name, value in here["evaluation"]["baselines"]["pca"].items():
        assert value == pytest.approx(whole.metrics["evaluation"]["baselines"]["pca"][name], abs=1e-3)
    assert here["evaluation"]["ndcg@10"]["32"] > 0.9 * whole.metrics["evaluation"]["ndcg@10"]["32"]
    # the cluster reads what this process did
    monkeypatch.setattr(scan, "SMALL_BYTES", 0)
    elsewhere = settings.model_copy(update={"out": str(tmp_path / "there"), "name": "sampled-there"})
    train.run(elsewhere)
    assert smec_core.load(tmp_path / "there").fingerprint == model.fingerprint
    with pytest.raises(InputError, match="other settings or data; choose another --name"):
        train.run(settings.model_copy(update={"sample_rows": 120}))


def _history(folder: Path) -> list[str]:
    return (folder / "history.jsonl").read_text().splitlines()


def test_a_run_on_s3_is_trained_once_and_comes_back_from_there(
    dataset: Path, tmp_path: Path, s3: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = _settings(dataset, tmp_path / "one" / "model", storage=s3("deep/runs"), name="once", workers=2)
    first = train.run(settings)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one" / "model").iterdir()}
    assert "is finished already" not in capfd.readouterr().err

    # as on another machine, which has nothing but the storage
    again = train.run(settings.model_copy(update={"out": str(tmp_path / "other" / "model")}))
    assert again == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "other" / "model").iterdir()} == files
    assert "run once is finished already; its model is taken from s3://test-" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["model"]
    with pytest.raises(InputError, match="other settings or data; choose another --name"):
        train.run(settings.model_copy(update={"seed": 1}))
    assert {path.name: path.read_bytes() for path in (tmp_path / "one" / "model").iterdir()} == files

    run_folder = RunFolder(s3("deep/runs"), "once")
    kept = {info.base_name for info in run_folder.filesystem.get_file_info(pafs.FileSelector(run_folder.path))}
    assert kept == {"model", "finished.json", "run.json", "mlflow_run.json", "ray_run.json", "threads.json"}


def _command(settings: TrainSettings) -> list[str]:
    chosen = settings.model_dump(mode="json", exclude_unset=True, exclude={"dims"})
    pairs = [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "pipelines.cli", "train", "--dims", "8,4", *pairs]


def test_of_two_runs_of_one_name_the_second_leaves_and_the_first_is_whole(
    dataset: Path, tmp_path: Path, s3: Callable[[str], str], model_folder: Path
) -> None:
    settings = _settings(dataset, tmp_path / "first", storage=s3("runs"), name="contested", workers=2)
    second = settings.model_copy(update={"out": str(tmp_path / "second")})
    first_process = subprocess.Popen(_command(settings), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        run_folder = RunFolder(s3("runs"), "contested")
        while (holder := run_folder.read("lease.json")) is None:
            assert first_process.poll() is None
            time.sleep(0.1)
        refused = subprocess.run(_command(second), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert first_process.poll() is None, "the second was not refused, the first had ended"
        assert refused.returncode == 4
        *_, line = refused.stderr.strip().splitlines()
        assert line.startswith(f"smec: run contested is being trained by process {holder['pid']} on ")
        assert not (tmp_path / "second").exists()
        _, errors = first_process.communicate(timeout=300)
        assert first_process.returncode == 0, errors
    finally:
        first_process.kill()
        first_process.communicate()
    assert smec_core.load(tmp_path / "first").fingerprint == smec_core.load(model_folder).fingerprint
    assert run_folder.read("lease.json") is None


def test_a_training_whose_lease_is_taken_over_stops_and_stores_nothing(dataset: Path, tmp_path: Path) -> None:
    settings = _settings(dataset, tmp_path / "model", storage=str(tmp_path / "runs"), name="overtaken", epochs=500)
    run_folder = RunFolder(str(tmp_path / "runs"), "overtaken")
    other = Holder.this_process()._replace(host="elsewhere", pid=77)
    process = subprocess.Popen(_command(settings), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("MLflow run "):
            assert process.poll() is None
        run_folder.write("lease.json", other._asdict())
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 4, errors
    assert "smec: run overtaken: its lease in" in errors
    assert "was taken over by process 77 on elsewhere" in errors.splitlines()[-1]
    assert not (tmp_path / "model").exists()
    assert not run_folder.is_finished
    assert run_folder.read("lease.json") == other._asdict()
    [run] = mlflow.search_runs(
        search_all_experiments=True, filter_string="run_name = 'overtaken'", output_format="list"
    )
    assert run.info.status == "RUNNING", "the other one goes on in it"


def test_an_unfinished_run_of_other_settings_is_not_taken_up(dataset: Path, tmp_path: Path) -> None:
    settings = _settings(dataset, tmp_path / "model", storage=str(tmp_path / "runs"), name="begun")
    # refused after the run has begun
    with pytest.raises(SmecError, match="gpu: 1 GPU\\(s\\) wanted"):
        train.run(settings.model_copy(update={"gpu": "on"}))
    with pytest.raises(InputError, match="other settings or data; choose another --name"):
        train.run(settings.model_copy(update={"seed": 1}))


def test_where_their_number_matters_a_run_is_of_so_many_workers(dataset: Path, tmp_path: Path) -> None:
    def name(**changes: Any) -> str:
        return train.Training(_settings(dataset, tmp_path / "model", **changes)).name

    assert name(workers="1") == name(workers="2") == name(workers="1:2")
    assert name(workers="1", memory="local") != name(workers="2", memory="local")
    with pytest.raises(InputError, match="workers: 1:2: with memory=local the result depends on how many there are"):
        name(workers="1:2", memory="local")


@pytest.mark.slow
def test_a_challenger_starts_at_the_champion_and_says_so(dataset: Path, model_folder: Path, tmp_path: Path) -> None:
    changes = {"storage": str(tmp_path / "runs"), "warm_start": str(model_folder), "compatible": 1.0, "workers": 2}
    settings = _settings(dataset, tmp_path / "challenger", **changes)
    metrics = train.run(settings)
    champion, challenger = smec_core.load(model_folder), smec_core.load(tmp_path / "challenger")
    assert challenger.config["warm_start"] == {"fingerprint": champion.fingerprint}
    assert f"- started from model {champion.fingerprint}" in (tmp_path / "challenger" / "README.md").read_text()
    assert {json.loads(line)["pass"] for line in _history(tmp_path / "challenger")} == {"warm"}
    # so that it can be a champion itself
    train.run(settings.model_copy(update={"warm_start": str(tmp_path / "challenger"), "out": str(tmp_path / "next")}))
    assert smec_core.load(tmp_path / "next").config["warm_start"] == {"fingerprint": challenger.fingerprint}
    # the champion names the run: with the same one nothing is trained again
    again = train.run(settings.model_copy(update={"out": str(tmp_path / "again")}))
    assert again == metrics
    assert len(list((tmp_path / "runs").glob("smec-*"))) == 2
    report.run(ReportSettings(folder=str(tmp_path / "challenger"), out=str(tmp_path / "report.html")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compatible": 1}, "compatible: needs a model to be compatible with; name it with warm_start"),
        ({"warm_start": "MODEL", "dims": "8"}, "dims: a warm start keeps the dims of its model, 32, 8, 4"),
        ({"warm_start": "MODEL", "base": "MODEL", "dims": "8,4,2"}, "warm_start: starts all stages anew"),
    ],
)
def test_a_champion_that_does_not_fit_is_refused_before_anything_starts(
    dataset: Path, model_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    changes = {key: str(model_folder) if value == "MODEL" else value for key, value in changes.items()}
    with pytest.raises(InputError, match=message):
        train.run(_settings(dataset, tmp_path / "model", **changes))
    assert not list(tmp_path.iterdir())


def test_mlflow_holds_the_run(model_folder: Path) -> None:
    [run] = mlflow.search_runs(search_all_experiments=True, filter_string="run_name = 'recorded'", output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "0"
    used = smec_core.load(model_folder).config["used"]
    alphas = {"alpha": 0.0, "alpha_whole": 0.0}
    assert used == alphas | {"lookahead": 1.0, "top_k": 10, "epochs": 2, "lr": 0.002, "patience": 2} | {
        "unsupervised": "listwise",
        "sample_rows": 400,
    }
    assert {name: run.data.params[name] for name in used} == {name: str(value) for name, value in used.items()}
    assert "None" not in run.data.params.values()
    metrics = smec_core.load(model_folder).metrics
    curve = MlflowClient().get_metric_history(run.info.run_id, "quality/test/ndcg_at_10")
    assert {point.step: point.value for point in curve} == {
        dim: pytest.approx(metrics["evaluation"]["ndcg@10"][str(dim)]) for dim in (32, 8, 4)
    }
    vectors = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    served = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").predict(vectors, params={"dim": 4})
    np.testing.assert_allclose(served, smec_core.load(model_folder).encode(vectors, 4), atol=1e-6)


@pytest.mark.parametrize("settings", [{"unsupervised": "cosines"}, {}], ids=["neighbours", "full vectors"])
def test_without_judgements_all_dims_stay_as_they_are(dataset: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    data = tmp_path / "unjudged"
    data.mkdir()
    for name in ("corpus", "queries.parquet"):
        (data / name).symlink_to(dataset / name)
    metrics = train.run(_settings(data, tmp_path / "model", top_k=10, **settings))
    assert metrics["evaluation"]["split"] is None
    assert set(metrics["dev"]) == {"neighbour_recall@10" if settings else "agreement@10"}
    assert metrics.get("taught_by") == (None if settings else "full vectors")
    assert metrics["evaluation"]["neighbour_recall@10"]["32"] == pytest.approx(1.0)


def test_a_bad_row_is_told_with_its_place_before_a_run_begins(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    path = data / "corpus" / "part-2.parquet"
    table = pq.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    vectors[7, 3] = np.nan
    from smec_core.data.parquet import write_embeddings

    write_embeddings(str(path), table["id"].to_pylist(), vectors)
    with pytest.raises(InputError, match=r"part-2.parquet: row 7, column embedding: holds NaN"):
        train.run(_settings(data, tmp_path / "model", name="bad-row", workers=2))
    assert not (tmp_path / "model").exists()
    runs = mlflow.search_runs(search_all_experiments=True, filter_string="run_name = 'bad-row'", output_format="list")
    assert not runs


def test_a_scratch_that_cannot_be_had_ends_at_once(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    scratch = tmp_path / "file" / "below"
    with pytest.raises(InputError, match=f"scratch: {scratch} cannot be made .*; name a folder on a local disk"):
        train.run(_settings(dataset, tmp_path / "model", scratch=str(scratch), max_failures=2))
    # no other try
    assert capfd.readouterr().err.count("worker(s) on CPU") == 1


def test_gpus_that_are_not_there_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(SmecError, match="gpu: 1 GPU\\(s\\) wanted, but the cluster has 0"):
        train.run(_settings(dataset, tmp_path / "model", gpu="on"))


def test_gpus_that_may_come_are_asked_for(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert use_gpus(_settings(dataset, tmp_path / "model", gpu="wait"), workers=2)
    assert "2 worker(s) need 2 GPUs, the cluster has 0 now; waiting" in capsys.readouterr().err
