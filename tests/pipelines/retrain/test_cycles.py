"""Cycles of a series on a real Ray cluster and a real MLflow store: what is released, refused, and left alone."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from pipelines.compress import job as compress
from pipelines.compress.settings import CompressSettings
from pipelines.retrain.cycle import Cycle
from pipelines.retrain.ledger import Ledger
from pipelines.storage.lease import Lease
from pipelines.storage.publish import plans
from pipelines.storage.run_folder import RunFolder
from smec_core.data.parquet import write_embeddings
from smec_core.data.uri import open_filesystem
from smec_core.data.versions import current, manifest_of
from smec_core.errors import DamagedError, GateError, InputError, LeaseError, SmecError
from tests.pipelines.retrain.series import Series

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def begun(folder: Path, s3: Callable[[str], str] | None = None) -> Series:
    """A series that has released once, by a part of the judgements."""
    made = Series(folder, s3=s3)
    made.judge(0.6)
    assert made.retrain()["outcome"] == "promoted"
    return made


def released_twice(folder: Path) -> Series:
    """A series that has released by a part of the judgements, and then by all."""
    made = begun(folder)
    made.judge(1)
    assert made.retrain()["outcome"] == "promoted"
    return made


@pytest.fixture
def series(tmp_path: Path) -> Series:
    """A series that has just released its first model."""
    return begun(tmp_path)


@pytest.fixture(scope="module")
def _standing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Series, Path]:
    made = begun(tmp_path_factory.mktemp("standing"))
    shutil.copytree(made.data, made.folder / "first data")
    return made, made.folder / "first data"


@pytest.fixture
def standing(_standing: tuple[Series, Path]) -> Iterator[Series]:
    """The same, shared by tests that release nothing; they find its data as they were."""
    made, first = _standing
    yield made
    for path in made.data.rglob("*.parquet"):
        kept = first / path.relative_to(made.data)
        if not kept.exists():
            path.unlink()
        elif kept.read_bytes() != path.read_bytes():
            shutil.copy2(kept, path)
    assert made.version == "v0001"


def test_more_judgements_make_a_better_model_which_is_released(
    series: Series, capsys: pytest.CaptureFixture[str]
) -> None:
    first = series.champion
    assert first is not None
    assert series.check_whole() == first.tags["smec.model_fingerprint"]
    before = series.tree()

    assert series.retrain()["outcome"] == "nothing new"
    assert series.tree() == before

    series.judge(1)
    record = series.retrain()

    assert record["outcome"] == "promoted"
    assert record["gate"]["gain"] > 0.1
    assert record["champion"] == first.tags["smec.model_fingerprint"]
    assert record["drift"]["mean_shift"] == record["drift"]["covariance_shift"] == 0
    assert record["known_queries"]["then"] == pytest.approx(record["known_queries"]["now"])
    assert record["known_queries"]["fresh_queries"] > 5
    second = series.champion
    assert second is not None
    assert series.check_whole() == second.tags["smec.model_fingerprint"] == record["challenger"]
    assert second.tags["smec.gate"] == record["reason"]
    assert (series.version, str(second.version)) == ("v0002", "2")
    assert "challenger" not in MlflowClient().get_registered_model(series.name).aliases
    assert record["reason"].startswith("PASSED: +")
    assert MlflowClient().get_run(str(second.run_id)).data.tags["smec.gate"] == record["reason"]
    curve = MlflowClient().get_metric_history(str(second.run_id), "gate/challenger")
    assert {str(point.step): point.value for point in curve} == pytest.approx(record["gate"]["ndcg@10"]["challenger"])

    assert series.rollback()["version"] == series.version == "v0001"
    assert series.check_whole() == first.tags["smec.model_fingerprint"]
    champion = series.champion
    assert champion is not None and champion.version == first.version
    # what was rolled back does not come again by itself
    assert series.retrain()["outcome"] == "nothing new"
    assert series.version == "v0001"
    # nor when settings are new, but give the same model
    with pytest.raises(GateError, match=r"it is the very model that was rolled back from; the champion stays$"):
        series.retrain("gate.max_drop=0.3")
    assert series.version == "v0001"
    for said in ("again, v0001 no more", "as before"):
        assert series.rollback("v0002")["version"] == series.version == "v0002"
        assert capsys.readouterr().err.rstrip().endswith(f"is in force {said}")
    with pytest.raises(InputError, match=r"to: no release has version v0009; .*: v0001, v0002; in force: v0002"):
        series.rollback("v0009")


def test_no_gate_query_is_trained_on(standing: Series) -> None:
    record = standing.retrain("gate.min_gain=0.001")
    run = json.loads((standing.storage / record["run"] / "run.json").read_text())
    assert run["hold_out"] == 0.2
    _, gate = Ledger(RunFolder(str(standing.storage), standing.name)).reference(1)
    config = json.loads((standing.storage / record["run"] / "model" / "config.json").read_text())
    judged = {
        name: set(pq.read_table(standing.data / f"qrels/{name}.parquet")["query_id"].to_pylist())
        for name in ("train", "test")
    }
    held_out = set(gate)
    assert held_out <= judged["train"] | judged["test"]
    assert config["data"]["splits"]["train"]["queries"] == len(judged["train"] - held_out)


@pytest.mark.parametrize(
    ("shuffled", "max_drop", "why"),
    [
        (("train",), 0.25, "the champion itself reaches"),
        (("train", "test"), 0.25, "the champion itself reaches"),
        (("train",), 1, "the mean over the dims gains -"),
    ],
)
def test_shuffled_judgements_release_nothing(
    standing: Series, shuffled: tuple[str, ...], max_drop: float, why: str
) -> None:
    champion, version = standing.champion, standing.version
    standing.judge(1, shuffled)

    with pytest.raises(GateError, match=rf"REFUSED: {why}.*; the champion stays$") as refused:
        standing.retrain(f"gate.max_drop={max_drop}")

    assert refused.value.figures["outcome"] == "refused"
    assert ("gate" in refused.value.figures) == (max_drop == 1)
    assert standing.champion == champion
    assert standing.version == version
    # the same data are not tried again
    assert standing.retrain(f"gate.max_drop={max_drop}")["outcome"] == "nothing new"


def test_data_at_fault_are_not_published_where_their_files_are_written_anew(series: Series) -> None:
    series.judge(1, ("train", "test"))
    with pytest.raises(GateError, match="REFUSED: the champion itself reaches"):
        series.retrain("gate.max_drop=.25")
    os.utime(next((series.data / "corpus").glob("*.parquet")), (0, 0))
    record = series.retrain("gate.max_drop=.25")
    assert (record["outcome"], record["release"], series.version) == ("unchanged", None, "v0001")


def test_new_documents_are_published_by_the_champion_where_the_challenger_is_no_better(series: Series) -> None:
    champion = series.champion
    x_ND = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    write_embeddings(str(series.data / "corpus/part-9.parquet"), [f"new{row}" for row in range(20)], x_ND)

    with pytest.raises(GateError, match=r"; the champion stays, with the corpus as it is now in v0002$") as refused:
        series.retrain("gate.min_gain=0.5")

    assert series.version == "v0002" == refused.value.figures["release"]["version"]
    assert series.champion == champion
    published = pq.read_table(list((series.output / "v0002").glob("*.parquet")))["id"].to_pylist()
    assert {"new0", "new19"} <= set(published)
    assert champion is not None and series.check_whole() == champion.tags["smec.model_fingerprint"]
    # an older corpus of the same model only where that is asked for
    with pytest.raises(InputError, match="no earlier model is kept"):
        series.rollback()
    assert series.rollback("v0001")["version"] == "v0001"


def test_other_columns_are_published_without_a_training(series: Series, capsys: pytest.CaptureFixture[str]) -> None:
    champion, parts = series.champion, sorted((series.data / "corpus").glob("*.parquet"))
    trainings = sorted(path.name for path in series.storage.glob(f"{series.name}-*"))

    def publish(price: int) -> dict[str, Any]:
        for part in parts:
            table = pq.read_table(part)
            rows = table.select(["id", "embedding"])
            pq.write_table(rows.append_column("price", pa.array([price] * len(table))), part)
        return series.retrain()

    # the last time with the same in it: a file that is written anew counts as changed
    for cycle, price in enumerate((1, 99, 99), 2):
        record = publish(price)
        assert (record["outcome"], record["cycle"], record["release"]["version"]) == (
            "unchanged",
            cycle,
            f"v000{cycle}",
        )
        published = pq.read_table(list((series.output / series.version).glob("*.parquet")))
        assert set(published["price"].to_pylist()) == {price}
        assert "unchanged: files are new, vectors and judgements are the same" in capsys.readouterr().err
        assert series.retrain()["outcome"] == "nothing new"
    assert series.champion == champion
    assert champion is not None and series.check_whole() == champion.tags["smec.model_fingerprint"]
    assert sorted(path.name for path in series.storage.glob(f"{series.name}-*")) == trainings


def test_files_that_are_new_leave_a_rollback_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = released_twice(tmp_path)
    assert series.rollback()["version"] == "v0001"
    ledger, champion = Ledger(RunFolder(series.stored, series.name)), series.champion
    os.utime(next((series.data / "corpus").glob("*.parquet")), (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Cycle, "_close", _fail)
        with pytest.raises(RuntimeError, match="killed here"):
            series.retrain()
    # nobody removes what the next start goes on with
    assert ledger.releases().releases[0].run in ledger.under_way(ledger.releases().champion)
    record = series.retrain()
    assert (record["outcome"], record["release"]["trained_in"]) == ("unchanged", 1)
    assert (series.champion, ledger.releases().anchor) == (champion, 1)
    assert series.version == record["release"]["version"] == "v0003"


def _fail(*_: Any) -> None:
    raise RuntimeError("killed here")


def test_two_series_do_not_share_a_published_folder(series: Series) -> None:
    other, version = f"{series.name}b", series.version
    with pytest.raises(DamagedError, match=rf"names {version}, which the series {series.name} in .* has publis"):
        series.retrain(f"name={other}", "train.seed=1")
    assert series.version == version
    assert not list(series.storage.glob(f"{other}-*"))
    assert series.retrain()["outcome"] == "nothing new"
    assert series.retrain(f"name={other}", f"publish.output={series.published}-b")["outcome"] == "promoted"
    with pytest.raises(DamagedError, match=rf"names v0001, which the series {other} in .* has published"):
        series.retrain(f"publish.output={series.published}-b")
    # what it publishes there by hand is not undone
    [made] = series.storage.glob(f"{other}-*/model")
    corpus = f"{series.data}/corpus"
    compress.run(CompressSettings(model=str(made), input=corpus, output=series.published, dim=16))
    with pytest.raises(DamagedError, match=rf"names v0002, which the series {other} in .* has published; give"):
        series.retrain()
    assert series.version == "v0002"


def test_vectors_of_another_embedding_model_are_refused(standing: Series) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((32, 32)))[0].astype(np.float32)
    for path in [*(standing.data / "corpus").iterdir(), standing.data / "queries.parquet"]:
        table = pq.read_table(path)
        x_ND = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
        write_embeddings(str(path), table["id"].to_pylist(), x_ND @ turn)
    before = standing.tree()

    for _ in range(2):
        with pytest.raises(InputError, match=r"the embedding model has changed: half of \d+ documents .* new series"):
            standing.retrain()

    assert standing.tree() == before


def test_a_series_is_retrained_by_one_process_at_a_time(standing: Series) -> None:
    standing.judge(1)
    folder = RunFolder(str(standing.storage), standing.name)
    with Lease(folder, lambda: None), pytest.raises(LeaseError, match=f"series {standing.name} is being worked on by"):
        standing.retrain()
    assert standing.version == "v0001"


def test_nothing_is_switched_without_the_registry_or_by_data_that_change(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = series.champion
    series.judge(1)
    with monkeypatch.context() as patch:
        registry = series.storage / series.name / "registry.json"
        known = registry.read_text()
        registry.write_text(json.dumps({"address": "http://127.0.0.1:9"}))
        patch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(SmecError, match=r"registry at http://\*\*\*@127.0.0.1:9 fails: .*run again") as failed:
            series.retrain()
        registry.write_text(known)
    assert "secret" not in str(failed.value)
    assert (series.champion, series.version) == (champion, "v0001")

    first, compressed = series.data / "corpus/part-0.parquet", compress.compress

    def compress_and_touch(settings: CompressSettings) -> dict[str, Any]:
        figures = compressed(settings)
        os.utime(first)
        return figures

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.retrain.cycle.compress", compress_and_touch)
        with pytest.raises(SmecError, match="data: changed while it was used; nothing is decided, run again"):
            series.retrain()
    assert (series.champion, series.version) == (champion, "v0001")

    assert series.retrain()["outcome"] == "promoted"
    assert series.champion != champion
    # the version of what had changed is gone
    assert {path.name for path in series.output.iterdir()} == {".lock", "CURRENT", "v0001", series.version}


def test_too_few_gate_queries_are_said_before_anything_is_trained(standing: Series) -> None:
    before = standing.tree()
    with pytest.raises(InputError, match=r"gate: \d+ judged queries are kept out for it .* judge more"):
        standing.retrain("gate.min_queries=90")
    assert standing.tree() == before


@pytest.mark.slow
def test_a_compatible_challenger_is_asked_for_the_old_documents_too(series: Series) -> None:
    champion = series.champion
    assert champion is not None
    series.judge(1)
    record = series.retrain("train.start=warm", "train.compatible=1")

    assert record["outcome"] == "promoted"
    assert min(record["gate"]["ndcg@10"]["new queries on old documents"].values()) > 0.3
    config = json.loads((series.storage / record["run"] / "model" / "config.json").read_text())
    assert config["warm_start"]["fingerprint"] == champion.tags["smec.model_fingerprint"]
    assert config["train"]["compatible"] == 1


def test_a_series_stays_with_its_registry(standing: Series, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI: names the registry .*other.db, but the versions of"):
        standing.retrain()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(
        InputError, match=r"MLFLOW_TRACKING_URI: is not set, and MLflow's own default lies in the job's"
    ):
        standing.rollback()


def test_dims_that_no_gate_has_looked_at_are_not_published(standing: Series) -> None:
    with pytest.raises(InputError, match=r"publish\.dim: 12 is none of the trained dims, 32, 16, 8"):
        standing.retrain("publish.dim=16,12")


def test_a_gate_does_not_take_queries_that_the_champion_has_learnt_from(standing: Series) -> None:
    with pytest.raises(InputError, match=r"gate\.fraction: 0\.4 takes queries that the champion has learnt from"):
        standing.retrain("gate.fraction=0.4")


def test_other_dims_need_a_fresh_start(standing: Series) -> None:
    with pytest.raises(InputError, match=r"train\.dims: 32, 4, but a warm start .*; set train\.start: fresh"):
        standing.retrain("train.start=warm", "train.dims=4", "publish.dim=4")


def test_a_refused_challenger_publishes_nothing_where_that_is_not_wanted(
    standing: Series, capsys: pytest.CaptureFixture[str]
) -> None:
    x_ND = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    write_embeddings(str(standing.data / "corpus/part-9.parquet"), [f"new{row}" for row in range(20)], x_ND)
    with pytest.raises(GateError, match=r"; the champion stays$"):
        standing.retrain("gate.min_gain=0.5", "publish.refresh=false")
    assert standing.version == "v0001"
    assert "publish.refresh is false: nothing is published" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_series_on_an_object_store(tmp_path: Path, s3: Callable[[str], str]) -> None:
    series = Series(tmp_path)
    places = [f"storage={s3('storage')}", f"publish.output={s3('vectors')}", "publish.keep=1"]
    for share in (0.6, 1.0):
        series.judge(share)
        assert series.retrain(*places)["outcome"] == "promoted"
    assert series.retrain(*places)["outcome"] == "nothing new"

    filesystem, folder = open_filesystem(current(s3("vectors")))
    manifest = manifest_of(filesystem, folder)
    champion = series.champion
    assert manifest is not None and champion is not None
    assert folder.endswith("v0002")
    assert manifest["model_fingerprint"] == champion.tags["smec.model_fingerprint"]
    assert list(plans(s3("vectors"))) == ["v0002"]


def test_compatibility_needs_a_warm_start(standing: Series) -> None:
    with pytest.raises(InputError, match="train: compatible: only a warm start can be; set start: warm"):
        standing.retrain("train.compatible=1")
