"""Exports as their users meet them: each is read by the tool it is for, and gives what `encode` gives."""

import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import smec_core
from pipelines.cli import app
from pipelines.export import job
from pipelines.export.job import run
from pipelines.export.settings import ExportSettings
from smec_core.errors import InputError, SmecError, extra
from smec_core.model.adapter import MLP_TENSORS, FrozenStage
from smec_core.model.model import Model

REPOSITORY = Path(__file__).resolve().parents[3]
FORMATS = ("onnx", "faiss", "numpy")
TEXTS = ["a cat that purrs", "the sea is salt water", "wie spät ist es?"]


def stage(d_in: int, dim: int, seed: int) -> FrozenStage:
    weight = torch.linalg.qr(torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(seed)))[0]
    # a linear map: no rotation, and of another scale
    weight = 3 * weight + 0.1 * torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(seed + 1))
    return FrozenStage(dim, "linear", {"weight": weight, "logits": torch.arange(d_in).float()})


def write_model(folder: Path, dims: list[int], seed: int = 0) -> Path:
    stages = [stage(d_in, dim, seed + number) for number, (d_in, dim) in enumerate(pairwise(dims))]
    Model(stages, dims[0], {"dims": dims}, {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", [48, 24, 8, 5])


def vectors(rows: int, dim: int = 48, seed: int = 0) -> np.ndarray:
    """Of many lengths, since originals need not be normalised."""
    rng = np.random.default_rng(seed)
    scales_N1 = 10.0 ** rng.uniform(-3, 3, size=(rows, 1))
    return (scales_N1 * rng.standard_normal((rows, dim))).astype(np.float32)


def export(model: Path, to: str, out: Path, **more: Any) -> dict[str, Any]:
    return run(ExportSettings.model_validate({"model": str(model), "to": to, "out": str(out), **more}))


def unit(z_Nd: np.ndarray, dim: int) -> np.ndarray:
    return z_Nd[:, :dim] / np.linalg.norm(z_Nd[:, :dim], axis=1, keepdims=True)


def assert_as_encode(model: Path, x_ND: np.ndarray, z_Nd: np.ndarray, dims: list[int]) -> None:
    for dim in dims:
        np.testing.assert_allclose(unit(z_Nd, dim), smec_core.load(model).encode(x_ND, dim), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dim", "dims"), [(None, [48, 24, 8, 5]), (8, [8, 5]), (10, [10, 8, 5])])
def test_onnx_graph_gives_what_encode_gives(
    tmp_path: Path, model: Path, dim: int | None, dims: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    out = tmp_path / "new" / "model.onnx"
    figures = export(model, "onnx", out, dim=dim)
    assert ("quality at 10 is unmeasured" in capsys.readouterr().err) == (dim == 10)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("embedding", ["N", 48])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("vector", ["N", dims[0]])]
    for rows in (1, 7, 200):
        x_ND = vectors(rows, seed=rows)
        [z_Nd] = session.run(None, {"embedding": x_ND})
        np.testing.assert_allclose(np.linalg.norm(z_Nd, axis=1), 1, atol=1e-6)
        assert_as_encode(model, x_ND, z_Nd, dims)
    assert not session.run(None, {"embedding": np.zeros((2, 48), np.float32)})[0].any()

    origin = json.loads(session.get_modelmeta().custom_metadata_map["smec_export"])
    assert origin["model_fingerprint"] == smec_core.load(model).fingerprint
    assert (origin["input_dim"], origin["dim"], origin["dims"]) == (48, dims[0], dims)
    assert (figures["dims"], figures["bytes"]) == (dims, out.stat().st_size)
    assert 0 <= figures["max_error"] < 1e-5
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("dim", "dims"), [(None, [48, 24, 8, 5]), (8, [8, 5])])
def test_faiss_index_takes_originals_and_finds_what_encode_finds(
    tmp_path: Path, model: Path, dim: int | None, dims: list[int]
) -> None:
    import faiss

    out = tmp_path / "model.faiss"
    figures = export(model, "faiss", out, dim=dim)
    docs_ND, queries_QD = vectors(300), vectors(9, seed=1)
    index: Any = faiss.read_index(str(out))
    assert (index.d, index.ntotal, index.is_trained) == (48, 0, True)
    index.add(docs_ND)
    scores_QK, found_QK = index.search(queries_QD, 4)
    load = smec_core.load(model)
    sim_QN = load.encode(queries_QD, dims[0]) @ load.encode(docs_ND, dims[0]).T
    np.testing.assert_array_equal(found_QK, np.argsort(-sim_QN, axis=1)[:, :4])
    np.testing.assert_allclose(scores_QK, -np.sort(-sim_QN, axis=1)[:, :4], atol=1e-5)
    assert_as_encode(model, docs_ND, faiss.downcast_index(index.index).reconstruct_n(0, 300), dims)

    record = json.loads((tmp_path / "model.faiss.json").read_text())
    assert record["model_fingerprint"] == load.fingerprint
    assert (record["dims"], figures["bytes"]) == (dims, out.stat().st_size)


@pytest.mark.parametrize("kind", ["IVF4,Flat", "HNSW8,Flat"])
def test_another_faiss_index_goes_behind_the_transforms(tmp_path: Path, model: Path, kind: str) -> None:
    import faiss

    export(model, "faiss", tmp_path / "model.faiss", dim=8)
    empty: Any = faiss.read_index(str(tmp_path / "model.faiss"))
    index = faiss.IndexPreTransform(faiss.index_factory(8, kind, faiss.METRIC_INNER_PRODUCT))
    for number in reversed(range(empty.chain.size())):
        index.prepend_transform(empty.chain.at(number))
    x_ND = vectors(400)
    index.train(x_ND)
    index.add(x_ND)
    faiss.write_index(index, str(tmp_path / "full.faiss"))
    scores_QK, found_QK = faiss.read_index(str(tmp_path / "full.faiss")).search(x_ND[:20], 1)
    assert found_QK[:, 0].tolist() == list(range(20))
    np.testing.assert_allclose(scores_QK, 1, atol=1e-5)


def test_numpy_folder_works_where_there_is_no_torch_and_no_smec(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    figures = export(model, "numpy", folder)
    x_ND = vectors(30)
    np.save(tmp_path / "x.npy", x_ND)
    script = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from nested_embedding import load
model = load()
x_ND = np.load("x.npy")
for dim in (48, 24, 8, 5, 3):
    np.save(f"batch-{dim}.npy", model.encode(x_ND, dim=dim))
    np.save(f"single-{dim}.npy", np.stack([model.encode(x_D, dim=dim) for x_D in x_ND]))
np.save("default.npy", model.encode(x_ND.tolist()))
assert not model.encode(np.zeros(48)).any()
loaded = {name.partition(".")[0] for name in sys.modules}
print(loaded & {"torch", "smec_core", "pipelines"}, model.origin["model_fingerprint"])
"""
    # isolated: without this repository on the path
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(folder)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    load = smec_core.load(model)
    assert done.stdout.split() == ["set()", load.fingerprint]
    for dim in (48, 24, 8, 5, 3):
        expected_Nd = load.encode(x_ND, dim)
        for kind in ("batch", "single"):
            z_Nd = np.load(tmp_path / f"{kind}-{dim}.npy")
            assert z_Nd.dtype == np.float32
            np.testing.assert_allclose(z_Nd, expected_Nd, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.load(tmp_path / "default.npy"), load.encode(x_ND), atol=1e-5, rtol=0)
    assert figures["bytes"] == sum(
        (folder / name).stat().st_size for name in ("nested_embedding.py", "matrix.safetensors")
    )
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir()), "the service may be another user"
    # the cache that the import left does not make it another export
    assert (folder / "__pycache__").exists()
    export(model, "numpy", folder, dim=8)


@pytest.mark.parametrize(
    ("shape", "dim", "message"),
    [
        ((47,), 8, r"shape \(47,\); this model takes \(24,\) or \(N, 24\)"),
        ((2, 3, 24), 8, "this model takes"),
        ((), 8, "this model takes"),
        ((24,), 9, r"dim is 9; this model gives 1 to 8, trained for \[8, 4\]"),
        ((24,), 0, "this model gives 1 to 8"),
    ],
)
def test_loader_says_what_it_takes(tmp_path: Path, shape: tuple[int, ...], dim: int, message: str) -> None:
    from pipelines.export.formats.nested_embedding import load

    export(write_model(tmp_path / "m", [24, 8, 4]), "numpy", tmp_path / "out", dim=8)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "out").encode(np.ones(shape), dim)


def test_sentence_transformer_gives_nested_vectors_of_text(tmp_path: Path, encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = write_model(tmp_path / "m", [384, 96, 24])
    out = tmp_path / "out"
    figures = export(model, "sentence-transformers", out, encoder=str(encoder))
    x_ND = SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    z_Nd = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    assert z_Nd.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(z_Nd, axis=1), 1, atol=1e-6)
    assert_as_encode(model, x_ND, z_Nd, [384, 96, 24])
    cut = SentenceTransformer(str(out), device="cpu", truncate_dim=24)
    np.testing.assert_allclose(
        cut.encode(TEXTS, normalize_embeddings=True), smec_core.load(model).encode(x_ND, 24), atol=1e-5, rtol=0
    )
    assert cut.similarity_fn_name == "cosine"
    assert figures["dims"] == [384, 96, 24]
    assert figures["max_error"] < 1e-5
    assert not [path for path in out.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
    card, record = (out / "README.md").read_text(), json.loads((out / "export.json").read_text())
    assert smec_core.load(model).fingerprint in card
    assert record["encoder"] == str(encoder)

    export(model, "sentence-transformers", out, encoder=str(encoder), dim=24)
    small = SentenceTransformer(str(out), device="cpu")
    assert small.get_embedding_dimension() == 24
    assert_as_encode(model, x_ND, small.encode(TEXTS), [24])


def test_examples_of_the_guide_run(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (REPOSITORY / "docs/exports.md").read_text()
    commands = re.findall(r"^    smec (.*)$", section, re.MULTILINE)
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert (len(commands), len(examples)) == (4, 5)
    monkeypatch.chdir(tmp_path)
    write_model(Path("model"), [384, 96, 24])
    for command in commands:
        result = CliRunner().invoke(app, [str(encoder) if word == "NAME" else word for word in command.split()])
        assert result.exit_code == 0, result.stderr
    np.save("vectors.npy", vectors(500, 384))
    script = ["import numpy as np", "vectors = np.load('vectors.npy')", *examples]
    done = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_encoder_that_cuts_its_vectors_or_is_in_half_precision(tmp_path: Path, encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(str(encoder), device="cpu", truncate_dim=64).to(torch.bfloat16)
    original.save(str(tmp_path / "encoder"))
    model = write_model(tmp_path / "m", [64, 16])
    export(model, "sentence-transformers", tmp_path / "out", encoder=str(tmp_path / "encoder"))
    x_ND = SentenceTransformer(str(tmp_path / "encoder"), device="cpu").float().encode(TEXTS)
    assert x_ND.shape == (3, 64)
    z_Nd = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    assert_as_encode(model, x_ND, z_Nd, [64, 16])


def test_encoder_that_is_an_export_is_refused(tmp_path: Path, model: Path, encoder: Path) -> None:
    export(write_model(tmp_path / "wide", [384]), "sentence-transformers", tmp_path / "out", encoder=str(encoder))
    with pytest.raises(InputError, match=rf"is an export of the model \w{{12}}, .*; name {encoder}, of which"):
        export(model, "sentence-transformers", tmp_path / "again", encoder=str(tmp_path / "out"))
    assert not (tmp_path / "again").exists()


def test_encoder_that_does_not_fit_or_is_not_there(
    tmp_path: Path, model: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="gives 384 dims, but the model takes 48; name the encoder"):
        export(model, "sentence-transformers", tmp_path / "out", encoder=str(encoder))
    with pytest.raises(InputError, match="encoder nowhere/nothing: no sentence-transformers model"):
        export(model, "sentence-transformers", tmp_path / "out", encoder="nowhere/nothing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"to": "sentence-transformers"}, "encoder: --to sentence-transformers needs --encoder"),
        ({"to": "onnx", "encoder": "x"}, "encoder: --to onnx takes vectors and no text; leave --encoder out"),
        ({"to": "onnx", "dim": 49}, r"dim is 49, but the model has 48; trained dims: \(48, 24, 8, 5\)"),
    ],
)
def test_bad_usage_is_refused(tmp_path: Path, model: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(ExportSettings.model_validate({"model": str(model), "out": str(tmp_path / "out"), **more}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_model_that_is_not_linear_is_refused(tmp_path: Path, to: str) -> None:
    tensors = {"weight": torch.eye(6), "logits": torch.ones(6)} | {name: torch.zeros(6, 6) for name in MLP_TENSORS}
    Model([FrozenStage(3, "residual_mlp", tensors)], 6, {"dims": [6, 3]}, {}).save(tmp_path / "m")
    with pytest.raises(InputError, match=r"residual_mlp, which no matrix can express, so it cannot be exported"):
        export(tmp_path / "m", to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_export_that_differs_from_the_model_leaves_nothing(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Model([stage(6, 3, 0)], 6, {"dims": [6, 3]}, {}).save(tmp_path / "m")
    out = tmp_path / "out"
    export(write_model(tmp_path / "good", [6, 3]), to, out)
    before = content(tmp_path)
    exporter = importlib.import_module(f"pipelines.export.formats.{job.MODULES[to]}")
    encode = exporter.encode

    def encode_otherwise(path: Path, x_ND: np.ndarray) -> np.ndarray:
        z_Nd: np.ndarray = np.array(encode(path, x_ND))
        z_Nd[4, 2] = np.nan
        return z_Nd

    monkeypatch.setattr(exporter, "encode", encode_otherwise)
    with pytest.raises(SmecError, match=f"the export to {to} gives other vectors than the model at 6 dims"):
        export(tmp_path / "m", to, out)
    assert content(tmp_path) == before


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", FORMATS)
def test_an_earlier_export_is_replaced_and_the_same_export_gives_the_same_bytes(
    tmp_path: Path, model: Path, to: str
) -> None:
    out = tmp_path / "here" / "out"
    export(model, to, out)
    first = content(out.parent)
    export(model, to, out, dim=8)
    assert content(out.parent) != first
    export(model, to, out)
    assert content(out.parent) == first


def test_a_kill_between_index_and_record_leaves_what_the_next_run_replaces(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "here" / "out"
    export(model, "faiss", out, dim=8)
    whole = content(out.parent)
    for old in (False, True):
        for steps in (1, 2):
            for path in out.parent.iterdir():
                path.unlink()
            if old:
                export(model, "faiss", out)
            command = [sys.executable, "-c", KILLED, str(model), str(out), str(steps)]
            assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
            export(model, "faiss", out, dim=8)
            assert content(out.parent) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.export import files
from tests.pipelines.export.test_job import export

publish, left = files._publish, int(sys.argv[3])

def stopped(*paths):
    global left
    publish(*paths)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

files._publish = stopped
export(Path(sys.argv[1]), "faiss", Path(sys.argv[2]), dim=8)
"""


def _other_file(out: Path) -> None:
    out.write_text("precious")


def _other_folder(out: Path) -> None:
    out.mkdir()
    (out / "precious.txt").write_text("precious")


def _record_of_another(out: Path) -> None:
    out.with_name(f"{out.name}.json").write_text("{}")


def _another_format(out: Path) -> None:
    export(write_model(out.parent / "m", [6, 3]), "numpy", out)


def _added_vectors(out: Path) -> None:
    import faiss

    export(write_model(out.parent / "m", [6, 3]), "faiss", out)
    index = faiss.read_index(str(out))
    index.add(vectors(10, 6))
    faiss.write_index(index, str(out))


def _added_file(out: Path) -> None:
    export(write_model(out.parent / "m", [6, 3]), "numpy", out)
    (out / "notes.txt").write_text("precious")


@pytest.mark.parametrize(
    ("to", "prepare", "message"),
    [
        ("onnx", _other_file, "out exists and is not what smec export --to onnx makes"),
        ("faiss", _other_file, "out exists and is not what smec export --to faiss makes"),
        ("numpy", _other_file, "out exists and is not what smec export --to numpy makes"),
        ("numpy", _other_folder, "out exists and is not what smec export --to numpy makes"),
        ("onnx", _other_folder, r"out is a folder, and --to onnx writes a file; name one, as .*out/model\.onnx"),
        ("faiss", _record_of_another, r"out\.json exists and is not what smec export --to faiss makes"),
        ("sentence-transformers", _another_format, "is not what smec export --to sentence-transformers makes"),
        ("faiss", _added_vectors, "out is not as it was exported, out is new or has changed"),
        ("numpy", _added_file, r"out is not as it was exported, notes\.txt is new or has changed"),
    ],
)
def test_what_export_did_not_make_is_never_overwritten(
    tmp_path: Path, model: Path, to: str, prepare: Callable[[Path], None], message: str
) -> None:
    prepare(tmp_path / "out")
    before = content(tmp_path)
    more = {"encoder": "x"} if to == "sentence-transformers" else {}
    with pytest.raises(InputError, match=message):
        export(model, to, tmp_path / "out", **more)
    assert content(tmp_path) == before


@pytest.fixture
def no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "pipelines.export.formats.onnx_graph", raising=False)
    yield


@pytest.mark.usefixtures("no_onnxruntime")
def test_missing_library_is_named_with_its_cure(tmp_path: Path, model: Path) -> None:
    arguments = ["export", "--model", str(model), "--to", "onnx", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr == f"smec: smec export --to onnx needs onnxruntime: {extra('export')}\n"
    assert not list(tmp_path.iterdir())


def test_command_writes_figures_and_says_where(tmp_path: Path, model: Path) -> None:
    arguments = ["export", "--model", str(model), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--to", "numpy", "--dim", "8", "--json", str(tmp_path / "f.json")])
    assert result.exit_code == 0
    assert "exported to numpy, 8 dims" in result.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    assert {"path", "bytes", "max_error", "dims"} <= figures.keys()
    assert figures["path"] == str(tmp_path / "out")
    result = CliRunner().invoke(app, [*arguments, "--to", "tensorflow"])
    assert result.exit_code == 2
    assert "to: Input should be 'onnx', 'faiss', 'sentence-transformers' or 'numpy'" in result.stderr
