"""Text to a dataset, with a real sentence-transformers model on a real Ray cluster, also after real kills."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipelines.ingest.actor import EncodeShard, Job
from pipelines.ingest.draft import digest_of
from pipelines.ingest.encoder import Encoder
from pipelines.ingest.job import Source, run
from pipelines.ingest.readers import Place
from pipelines.ingest.settings import IngestSettings
from pipelines.storage.manifest import finish_task
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import write_embeddings
from smec_core.data.stored_files import describe
from smec_core.data.uri import join_uri
from smec_core.errors import InputError, LeaseError, SmecError
from tests.builders import QRELS, json_lines, write_beir
from tests.kills import PATIENCE_SECONDS, REPOSITORY
from tests.pipelines.storage.test_damage import copy_tree, snapshot, write

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (extra: ingest)")

WORDS = ["sea", "star", "cat", "purr", "salt", "water", "moon", "river", "stone", "cloud", "wind", "leaf"]


def ingest(source: Path, out: Path, encoder: str | Path = "no-encoder", **more: Any) -> dict[str, Any]:
    return run(IngestSettings(source=str(source), output=str(out), encoder=str(encoder), workers=1, **more))


def read(path: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path)
    vectors = table["embedding"].combine_chunks()
    return table["id"].to_pylist(), vectors.flatten().to_numpy().reshape(len(table), -1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_dataset_of_real_text(tmp_path: Path, encoder: Path, data_dir: Callable[[str], Path]) -> None:
    beir = data_dir("scifact") / "beir"
    judgements = (beir / "qrels/train.tsv").read_text().splitlines()[:31]
    asked = {line.split("\t")[0] for line in judgements[1:]}
    relevant = {line.split("\t")[1] for line in judgements[1:]}
    documents = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    documents = [entry for entry in documents if entry["_id"] in relevant] + documents[:20]
    documents = list({entry["_id"]: entry for entry in documents}.values())
    source = write_beir(
        tmp_path / "beir",
        json_lines(documents),
        (beir / "queries.jsonl").read_text(),
        train="\n".join(judgements) + "\n",
    )
    figures = ingest(source, tmp_path / "data", encoder, rows_per_file=32)
    dataset = Dataset.open(str(tmp_path / "data"))
    assert (dataset.corpus.rows, dataset.queries.rows, dataset.dim) == (len(documents), len(asked), 384)
    assert figures["qrels"] == {"train": 30}
    assert len(dataset.corpus.files) == -(-len(documents) // 32)
    doc_ids = dataset.corpus.ids().to_pylist()
    assert doc_ids == [entry["_id"] for entry in documents]
    assert set(dataset.queries.ids().to_pylist()) == asked

    docs_ND = np.concatenate([block.vectors_ND for block in dataset.corpus.blocks()])
    queries_QD = np.concatenate([block.vectors_ND for block in dataset.queries.blocks()])
    np.testing.assert_allclose(np.linalg.norm(docs_ND, axis=1), 1, atol=1e-5)
    best = [doc_ids[row] for row in (queries_QD @ docs_ND.T).argmax(1)]
    pairs = {tuple(line.split("\t")[:2]) for line in judgements[1:]}
    found = sum(pair in pairs for pair in zip(dataset.queries.ids().to_pylist(), best, strict=True))
    assert found > 0.6 * len(asked), "the model finds most claims' abstracts; vectors and ids do not fit together"

    manifest = json.loads((tmp_path / "data/_manifest.json").read_text())
    assert manifest["encoder"] == str(encoder)
    assert manifest["encoder_fingerprint"] == figures["encoder_fingerprint"] == Encoder.find(str(encoder)).fingerprint
    assert sum(file["rows"] for file in manifest["files"]) == len(documents) + len(asked) + 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beir", "data"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_title_and_text_are_encoded_together(tmp_path: Path, encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    ingest(write_beir(tmp_path / "beir"), tmp_path / "data", encoder)
    ids, vectors_ND = read(tmp_path / "data/corpus")
    expected = SentenceTransformer(str(encoder), device="cpu").encode(
        ["Cats Small carnivores that purr.", "The sea is salt water.", "A star."], normalize_embeddings=True
    )
    assert ids == ["cat", "sea", "sun"]
    np.testing.assert_allclose(vectors_ND, expected, atol=1e-5)
    assert read(tmp_path / "data/queries")[0] == ["q1", "q2", "q3"], "without judgements for training all count"
    assert pq.read_table(tmp_path / "data/qrels/test.parquet").to_pylist() == [
        {"query_id": "q1", "doc_id": "cat", "score": 2},
        {"query_id": "q2", "doc_id": "sea", "score": 1},
        {"query_id": "q2", "doc_id": "sun", "score": 0},
    ]


def many(folder: Path, **qrels: str) -> Path:
    """Forty documents, eight queries."""
    documents = [{"_id": f"d{n}", "text": " ".join(WORDS[(n * k) % 12] for k in range(1 + n % 40))} for n in range(40)]
    queries = [{"_id": f"q{n}", "text": f"{WORDS[n]} {n}"} for n in range(8)]
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(8))
    return write_beir(folder, json_lines(documents), json_lines(queries), **(qrels or {"test": judged}))


def files_of(folder: Path) -> dict[str, str]:
    """Hash of every file but the manifest."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "_manifest.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def left_by_a_kill(finished: Path, partial: Path, *lost: str, **plan: Any) -> None:
    """Makes of a finished dataset what a run leaves that is killed before it wrote some files."""
    shutil.copytree(finished, partial / "data")
    (partial / "data/_manifest.json").unlink()
    for name in lost:
        (partial / "data" / name).unlink()
    (partial / "plan.json").write_text(json.dumps(plan_of(finished) | plan))
    disk, folder = pafs.LocalFileSystem(), str(partial / "data")
    for path in (partial / "data").rglob("*.parquet"):
        name = str(path.relative_to(folder))
        if not name.startswith("qrels/"):
            described = describe(disk, str(path), name, pq.read_metadata(path).num_rows)
            finish_task(disk, folder, name, [described], digest_of(plan_of(finished) | plan))


def plan_of(finished: Path) -> dict[str, Any]:
    manifest = json.loads((finished / "_manifest.json").read_text())
    keys = ("job", "text", "encoder_fingerprint", "query_prompt", "document_prompt", "batch_size", "rows_per_file")
    return {key: manifest[key] for key in keys}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, encoder: Path, ray_cluster: None) -> Path:
    """The folder of `beir`, the text, and `data`, its dataset in files of two rows."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ingest(many(folder / "beir"), folder / "data", encoder, rows_per_file=2)
    return folder


@pytest.mark.slow
@pytest.mark.ray
def test_killed_run_is_gone_on_with_to_the_same_bytes(
    tmp_path: Path, undisturbed: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, partial = undisturbed / "beir", tmp_path / "data", tmp_path / "data.partial"
    command = [sys.executable, "-m", "pipelines.cli", "ingest", str(source), str(out), "--encoder", str(encoder)]
    job = subprocess.Popen(
        [*command, "--workers", "1", "--set", "rows_per_file=2"], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (partial / "lease.json").exists():
            assert job.poll() is None and time.monotonic() < deadline, "the run took no lease"
            time.sleep(0.01)
        with pytest.raises(LeaseError, match=rf"dataset {out} is being written by process {job.pid} on "):
            ingest(source, out, encoder, rows_per_file=2)
        while len(list(partial.glob("data/corpus/*.parquet"))) < 2:
            assert job.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
            time.sleep(0.002)
    finally:
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    assert not out.exists(), "half a dataset can be seen"

    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("data/corpus/*.parquet")}
    figures = ingest(source, out, encoder, rows_per_file=2)
    assert f"going on with an unfinished dataset: {2 * len(done)} of 48 rows" in capsys.readouterr().err
    assert figures["encoded"] == 48 - 2 * len(done) < 48
    assert {name: (out / "corpus" / name).stat().st_mtime_ns for name in done} == done, "a file was written again"
    assert files_of(out) == files_of(undisturbed / "data")
    assert plan_of(out) == plan_of(undisturbed / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.ray
def test_parquet_gives_the_same_bytes_and_a_file_of_another_plan_is_not_taken(
    tmp_path: Path, undisturbed: Path, encoder: Path
) -> None:
    source, out = tmp_path / "hub", tmp_path / "data"
    for kind in ("corpus", "queries"):
        entries = [json.loads(line) for line in (undisturbed / f"beir/{kind}.jsonl").read_text().splitlines()]
        (source / kind).mkdir(parents=True)
        for number, start in enumerate((0, 3, 8)):
            rows = entries[start : (3, 8, None)[number]]
            file = source / f"{kind}/{kind}-0000{number}-of-00003.parquet"
            pq.write_table(pa.Table.from_pylist(rows, pa.schema({"_id": pa.string(), "text": pa.string()})), file)
    shutil.copytree(undisturbed / "beir/qrels", source / "qrels")
    left_by_a_kill(undisturbed / "data", tmp_path / "data.partial", "corpus/00001.parquet", "queries/00000.parquet")
    strange = tmp_path / "data.partial/data/corpus/00003.parquet"
    write_embeddings(str(strange), ["d6", "d7"], np.ones((2, 384), np.float32))
    (strange.parent / "00004.parquet.0123abcd.tmp").write_text("torn")
    assert ingest(source, out, encoder, rows_per_file=2)["encoded"] == 6
    assert files_of(out) == files_of(undisturbed / "data")


@pytest.mark.ray
@pytest.mark.parametrize("manifest", ["_manifest.json", "manifest.json"])
def test_finished_dataset_of_the_same_plan_is_left_as_it_is(
    tmp_path: Path, undisturbed: Path, encoder: Path, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    (tmp_path / "data/_manifest.json").rename(tmp_path / "data" / manifest)
    # as a run leaves it that is killed after its last step but one
    (tmp_path / "data.partial").mkdir()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    figures = ingest(undisturbed / "beir", tmp_path / "data", encoder, rows_per_file=2)
    assert "nothing to do" in capsys.readouterr().err
    assert (figures["corpus"], figures["queries"], figures["encoded"], figures["dim"]) == (40, 8, 0, 384)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.ray
def test_another_text_encoder_or_setting_is_refused(tmp_path: Path, undisturbed: Path, encoder: Path) -> None:
    out, partial = tmp_path / "data", tmp_path / "data.partial"
    shutil.copytree(undisturbed / "data", out)
    beir, other = undisturbed / "beir", write_beir(tmp_path / "other")
    copy = with_prompts(encoder, tmp_path / "encoder", {})
    with pytest.raises(InputError, match=r"exists already, made with another text; choose another folder, or remove"):
        ingest(other, out, encoder, rows_per_file=2)
    with pytest.raises(InputError, match=r"made with another encoder; "):
        ingest(beir, out, copy, rows_per_file=2)
    with pytest.raises(InputError, match=r"made with another query_prompt, batch_size; "):
        ingest(beir, out, encoder, rows_per_file=2, batch_size=8, query_prompt="ask: ")
    assert files_of(out) == files_of(undisturbed / "data")

    shutil.rmtree(out)
    left_by_a_kill(undisturbed / "data", partial, "corpus/00000.parquet")
    before = files_of(partial / "data")
    with pytest.raises(InputError, match=r"data\.partial: holds an unfinished dataset of another encoder; give"):
        ingest(beir, out, copy, rows_per_file=2)
    assert files_of(partial / "data") == before
    (partial / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.partial/plan\.json: is damaged .* remove .*data\.partial$"):
        ingest(beir, out, encoder, rows_per_file=2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_encoder_with_prompts_gets_them_and_settings_give_others(tmp_path: Path, encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    prompted = with_prompts(encoder, tmp_path / "encoder", {"query": "query: ", "passage": "passage: "})
    source, out = write_beir(tmp_path / "beir", train=QRELS), tmp_path / "data"
    # what a run leaves that is killed before its first file: nothing is lost, so the next may be another
    (tmp_path / "data.partial/data/corpus").mkdir(parents=True)
    (tmp_path / "data.partial/plan.json").write_text("{}")
    ingest(source, out, prompted)
    model = SentenceTransformer(str(encoder), device="cpu")
    queries_QD = model.encode(["query: animals that purr", "query: salt"], normalize_embeddings=True)
    docs_ND = model.encode(
        ["passage: Cats Small carnivores that purr.", "passage: The sea is salt water.", "passage: A star."],
        normalize_embeddings=True,
    )
    np.testing.assert_allclose(read(out / "queries")[1], queries_QD, atol=1e-5)
    np.testing.assert_allclose(read(out / "corpus")[1], docs_ND, atol=1e-5)

    ingest(source, tmp_path / "other", prompted, query_prompt="", document_prompt="text: ")
    plain_QD = model.encode(["animals that purr", "salt"], normalize_embeddings=True)
    np.testing.assert_allclose(read(tmp_path / "other/queries")[1], plain_QD, atol=1e-5)
    star_D = model.encode("text: A star.", normalize_embeddings=True)
    np.testing.assert_allclose(read(tmp_path / "other/corpus")[1][2], star_D, atol=1e-5)


def with_prompts(encoder: Path, folder: Path, prompts: dict[str, str]) -> Path:
    """The encoder with prompts in its configuration."""
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(encoder / "model.safetensors")
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config | {"prompts": prompts}))
    return folder


@pytest.mark.ray
def test_on_an_object_store(
    tmp_path: Path, undisturbed: Path, encoder: Path, s3: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, beside = undisturbed / "beir", s3("sets/data"), s3("sets/data.partial")
    filesystem, root = pafs.FileSystem.from_uri(out)
    # what a run leaves that is killed before it has written two of its files
    left_by_a_kill(undisturbed / "data", tmp_path, "corpus/00002.parquet", "queries/00003.parquet")
    pafs.copy_files(str(tmp_path / "data"), out)
    with pytest.raises(InputError, match=r"s3://.*/sets/data: exists already; choose another folder"):
        run(IngestSettings(source=str(source), output=out, encoder=str(encoder)))
    with pafs.FileSystem.from_uri(beside)[0].open_output_stream(f"{root}.partial/plan.json") as sink:
        sink.write((tmp_path / "plan.json").read_bytes())
    with pytest.raises(InputError, match=r"data\.partial: holds an unfinished dataset of another rows_per_file"):
        run(IngestSettings(source=str(source), output=out, encoder=str(encoder)))

    settings = IngestSettings(source=str(source), output=out, encoder=str(encoder), rows_per_file=2, workers=1)
    assert run(settings)["encoded"] == 4
    assert Dataset.open(out).corpus.rows == 40
    pafs.copy_files(out, str(tmp_path / "fetched"))
    assert files_of(tmp_path / "fetched") == files_of(undisturbed / "data")
    assert plan_of(tmp_path / "fetched") == plan_of(undisturbed / "data")
    assert filesystem.get_file_info(f"{root}.partial").type == pafs.FileType.NotFound
    assert run(settings)["encoded"] == 0
    assert "nothing to do" in capsys.readouterr().err


def test_text_that_changes_while_it_is_read(tmp_path: Path) -> None:
    beir = many(tmp_path / "beir")
    source = Source.read(str(beir), 16)
    text = (beir / "corpus.jsonl").read_text()
    (beir / "corpus.jsonl").write_text(text.replace("sea", "tea"))
    prompts: dict[str, str | None] = {"corpus": None, "queries": None}
    place = Place(pafs.LocalFileSystem(), str(tmp_path / "data"))
    encoder = Encoder("none", "sha256:0", True)
    actor = EncodeShard(Job(encoder, source.texts, source.judged, place, "plan", prompts, 8), gpu=False)
    [record] = actor(source.shards[1]._asdict())
    assert str(pickle.loads(record["error"])).endswith("corpus.jsonl: changed while it was read; run again")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("step", ["actor_pool", "_manifest"], ids=["before", "afterwards"])
def test_text_that_is_replaced_before_it_is_encoded_or_afterwards(
    step: str, storage: str, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = join_uri(storage, "beir"), join_uri(storage, "data")
    copy_tree(many(tmp_path / "beir"), source)
    [(path, text)] = [file for file in snapshot(source).items() if file[0].endswith("/corpus.jsonl")]
    hook = f"pipelines.ingest.job.{step}"
    original = resolve_name(hook)

    def replace_first(*values: Any, **options: Any) -> Any:
        write(source, {path: text.replace(b"sea", b"tea")})
        return original(*values, **options)

    monkeypatch.setattr(hook, replace_first)
    with pytest.raises(SmecError, match=r"/beir(/corpus\.jsonl)?: changed while it was read; run again") as failed:
        run(IngestSettings(source=source, output=out, encoder=str(encoder), workers=1))
    assert failed.value.exit_code == 1
    assert not [path for path in snapshot(storage) if path.endswith("/_manifest.json")]


def test_worker_with_another_encoder_under_the_name_stops(tmp_path: Path, encoder: Path) -> None:
    name = str(with_prompts(encoder, tmp_path / "encoder", {}))
    found = Encoder.find(name)
    assert Encoder.find(str(encoder)).fingerprint != found.fingerprint
    (tmp_path / "encoder/README.md").write_text("Another card, the same vectors.")
    assert Encoder.find(name) == found
    (tmp_path / "encoder/modules.json").write_text("[]")
    with pytest.raises(SmecError, match=r"a worker has other files under this name .* give all machines the same"):
        found.load("cpu")


def test_name_on_the_hub_stands_for_a_commit(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = "1" * 40, "2" * 40
    repository = tmp_path / "models--team--encoder"
    for commit, prompts in ((first, {}), (second, {"query": "query: "})):
        with_prompts(encoder, repository / f"snapshots/{commit}", prompts)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(first)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    found = Encoder.find("team/encoder")
    assert found.fingerprint == f"commit:{first}"
    # the team changes its model under the same name
    (repository / "refs/main").write_text(second)
    assert Encoder.find("team/encoder").fingerprint == f"commit:{second}"
    assert not found.load("cpu").prompts["query"], "the driver found one commit, its worker loaded another"
    assert Encoder.find("team/encoder").load("cpu").prompts["query"] == "query: "


def test_encoder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write_beir(tmp_path / "beir")
    with pytest.raises(InputError, match="encoder nobody/nothing: no sentence-transformers model in") as caught:
        ingest(source, tmp_path / "data", "nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"beir: no sentence-transformers model in this folder; it holds neither"):
        ingest(source, tmp_path / "data", source)
    assert [path.name for path in tmp_path.iterdir()] == ["beir"], "something half written was left"


@pytest.mark.parametrize("output", ["/", "s3://bucket", "s3://bucket/?region=us-east-1"])
def test_output_without_a_folder_of_its_own_is_refused(tmp_path: Path, output: str) -> None:
    with pytest.raises(InputError, match=r"cannot be the dataset's folder; name one within it"):
        run(IngestSettings(source=str(write_beir(tmp_path / "beir")), output=output, encoder="no-encoder"))


def test_malformed_text_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"qrels/test\.tsv: line 5: needs query_id"):
        ingest(write_beir(tmp_path / "beir", test=QRELS + "q1\n"), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["beir"]


def test_output_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        ingest(write_beir(tmp_path / "beir"), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_a_folder_of_the_user_beside_the_output_is_not_touched(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "beir")
    for name in ("notes.txt", "data/mine.txt"):
        mine = tmp_path / "data.partial" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("keep")
        with pytest.raises(InputError, match=r"data\.partial: is where the dataset is prepared, but holds"):
            ingest(source, tmp_path / "data")
        assert mine.read_text() == "keep"
        shutil.rmtree(tmp_path / "data.partial")


def test_without_sentence_transformers_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SmecError, match=r"pip install -e '\.\[ingest\]' in the clone"):
        ingest(write_beir(tmp_path / "beir"), tmp_path / "data")
