"""Model folders and `encode`: what a user loads, gets, and is told when something does not fit."""

import hashlib
import json
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import smec_core
from smec_core.checksums import SUMS, write_sums
from smec_core.config import Projection
from smec_core.data.seen import SeenDocuments
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage, apply_chain
from smec_core.model.files import load
from smec_core.model.model import SEALED, Model
from tests.kills import REPOSITORY

DIM = 8


def make_stage(kind: Projection, d_in: int, dim: int, seed: int) -> FrozenStage:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"weight": torch.randn(d_in, d_in, generator=generator), "logits": torch.linspace(1, -1, d_in)}
    if kind == "residual_mlp":
        tensors |= {
            "up": torch.randn(3, d_in, generator=generator),
            "up_bias": torch.randn(3, generator=generator),
            "down": torch.randn(d_in, 3, generator=generator),
            "down_bias": torch.randn(d_in, generator=generator),
        }
    return FrozenStage(dim, kind, tensors)


def make_model(last: Projection = "rotation", seed: int = 0) -> Model:
    stages = [make_stage("linear", DIM, 4, seed), make_stage(last, 4, 2, seed + 1)]
    seen = SeenDocuments(np.array([1, 2**40, 2**63 + seed], np.uint64))
    return Model(stages, DIM, {"dims": [DIM, 4, 2], "train": {"seed": 3}}, {"dev": {"ndcg@10": {"2": 0.5}}}, seen)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model().save(tmp_path / "model")
    return tmp_path / "model"


def vectors(rows: int = 10) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, DIM)).astype(np.float32)


@pytest.mark.parametrize("kind", ["rotation", "residual_mlp"])
def test_a_stored_model_encodes_as_before(tmp_path: Path, kind: Projection) -> None:
    model = make_model(kind)
    model.save(tmp_path / "new" / "model")
    loaded = smec_core.load(str(tmp_path / "new" / "model"))
    assert (loaded.input_dim, loaded.dims, loaded.fingerprint) == (DIM, (DIM, 4, 2), model.fingerprint)
    assert (loaded.matrix_DD is None) == (kind == "residual_mlp")
    assert loaded.metrics == model.metrics
    assert loaded.seen is not None
    assert model.seen is not None
    assert loaded.seen.hash_S.tolist() == model.seen.hash_S.tolist()
    assert loaded.config["train"] == {"seed": 3}
    for dim in (None, *model.dims):
        np.testing.assert_array_equal(loaded.encode(vectors(), dim), model.encode(vectors(), dim))


def test_a_model_of_the_first_edition_is_read(folder: Path) -> None:
    """It calls a linear map `free`; a run of that name keeps it."""
    config = json.loads((folder / "config.json").read_text()) | {"run": "free", "format": 1}
    (folder / SUMS).unlink()
    config["stages"][0]["projection"] = "free"
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    stage = {"projection": "free", "candidates": {"free": {"epochs": 2}, "rotation": {"epochs": 0}}}
    (folder / "metrics.json").write_text(json.dumps({"stages": [stage]}, indent=2))
    model = smec_core.load(folder)
    assert [one.projection for one in model.stages] == ["linear", "rotation"]
    assert model.config["run"] == "free"
    assert model.metrics["stages"][0]["projection"] == "linear"
    assert set(model.metrics["stages"][0]["candidates"]) == {"linear", "rotation"}
    assert model.fingerprint == make_model().fingerprint


@pytest.mark.parametrize("kind", ["rotation", "residual_mlp"])
def test_encode_is_the_normalised_prefix_of_the_chain(kind: Projection) -> None:
    model = make_model(kind)
    whole_ND = apply_chain(model.stages, F.normalize(torch.from_numpy(vectors()), dim=1))
    for dim in range(1, DIM + 1):
        expected = F.normalize(whole_ND[:, :dim], dim=1)
        torch.testing.assert_close(model.encode(torch.from_numpy(vectors()), dim), expected, atol=1e-5, rtol=1e-4)


def test_a_prefix_of_the_full_vector_is_the_short_vector() -> None:
    model = make_model()
    cut = model.encode(vectors())[:, :2]
    np.testing.assert_allclose(
        cut / np.linalg.norm(cut, axis=1, keepdims=True), model.encode(vectors(), 2), atol=1e-5, rtol=1e-4
    )


def test_numpy_gives_numpy_and_torch_gives_torch() -> None:
    model = make_model()
    from_numpy, from_torch = model.encode(vectors(), 4), model.encode(torch.from_numpy(vectors()), 4)
    assert isinstance(from_numpy, np.ndarray)
    assert isinstance(from_torch, torch.Tensor)
    assert from_numpy.dtype == np.float32
    assert from_torch.dtype == torch.float32
    np.testing.assert_array_equal(from_numpy, from_torch.numpy())
    np.testing.assert_allclose(np.linalg.norm(from_numpy, axis=1), 1, rtol=1e-6)


def test_the_scale_and_the_kind_of_numbers_do_not_matter() -> None:
    model, x_ND = make_model(), vectors()
    expected = model.encode(x_ND, 4)
    np.testing.assert_allclose(model.encode(1000 * x_ND, 4), expected, atol=1e-6)
    np.testing.assert_allclose(model.encode(x_ND.astype(np.float64), 4), expected, atol=1e-6)
    np.testing.assert_allclose(model.encode(np.asfortranarray(x_ND), 4), expected, atol=1e-6)
    half = x_ND.astype(np.float16)
    np.testing.assert_allclose(model.encode(half, 4), model.encode(half.astype(np.float32), 4), atol=1e-6)
    assert model.encode(x_ND[:0], 4).shape == (0, 4)


def test_a_corpus_without_neighbours_is_refused_where_they_are_the_measure() -> None:
    with pytest.raises(InputError, match="has one document and no judgements; give more of either"):
        make_model().evaluate(vectors(1))


@pytest.mark.parametrize(
    "place", ["s3://bucket/model", "hf://user/model", "file:///tmp/model", Path("s3://bucket/model")]
)
def test_a_model_is_not_saved_to_a_uri(place: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is a URI; save to a folder and copy it there, hf:// by push_to_hub"):
        make_model().save(place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["README.md", "config.json", "history.jsonl", "SHA256SUMS"])
def test_a_model_replaces_no_files_of_something_else(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds no model, but {name}; name another"):
        make_model().save(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_told_of(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"folder: .*file.* cannot be written \(.*\); name another"):
        make_model().save(tmp_path / place)


def test_vectors_that_are_read_only_are_no_cause_for_a_warning() -> None:
    # as they come from Arrow
    x_ND = vectors()
    x_ND.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model().encode(x_ND, 4)


@pytest.mark.parametrize("dim", [0, -1, DIM + 1, 4.0, np.float32(4)])
def test_a_dim_out_of_range_or_not_whole_is_refused(dim: Any) -> None:
    with pytest.raises(InputError, match=rf"dim is {dim}; this model gives 1 to 8, trained for \(8, 4, 2\)"):
        make_model().encode(vectors(), dim)


def test_a_dim_of_numpy_is_taken() -> None:
    four: Any = np.int64(4)
    assert make_model().encode(vectors(), four).shape[1] == 4


@pytest.mark.parametrize("shape", [(3, DIM - 1), (3, DIM + 1), (DIM - 1,), (0,), (), (1, 3, DIM)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    for given in (np.ones(shape, np.float32), np.ones(shape).tolist(), torch.ones(shape)):
        with pytest.raises(InputError, match=r"embeddings have shape .*; this model takes \(8,\) or \(N, 8\)"):
            make_model().encode(given)


def test_a_model_says_what_it_is() -> None:
    model = make_model()
    assert repr(model) == f"Model(8 -> 8, 4, 2 dims; 2 stages; linear; fingerprint {model.fingerprint[:12]})"
    assert "; not linear; " in repr(make_model("residual_mlp"))
    base = make_base()
    assert f"5 stages; linear; extends {base.fingerprint[:12]};" in repr(make_extended(base))


def test_other_weights_have_another_fingerprint() -> None:
    assert make_model().fingerprint == make_model().fingerprint
    assert make_model().fingerprint != make_model(seed=1).fingerprint


def test_the_fingerprint_is_that_of_the_stored_file(folder: Path) -> None:
    content = (folder / "adapter.safetensors").read_bytes()
    assert load(folder).fingerprint == hashlib.sha256(content).hexdigest()


def test_the_card_says_how_to_use_the_model(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "Compresses 8-dim embeddings" in card
    assert "8, 4, 2 dims" in card
    assert "encode(embeddings, dim=2)" in card


def test_the_card_tells_seen_and_unseen_queries_apart(tmp_path: Path) -> None:
    model = make_model()
    whole = {"queries": 7, "ndcg@10": {"8": 0.5, "4": 0.4, "2": 0.3}}
    parts = {"seen": whole | {"queries": 4}, "unseen": whole | {"queries": 3, "ndcg@10": {"8": 0.25, "4": 0, "2": 0}}}
    model.metrics["evaluation"] = {"split": "test"} | whole | parts
    model.save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| dims | seen, 4 queries | unseen, 3 queries |" in card
    assert "| 8 | 0.5000 | 0.2500 |" in card


def seal(folder: Path) -> None:
    """As somebody who writes other files, and their checksums, too."""
    write_sums(folder, [name for name in SEALED if (folder / name).exists()])


def spoil(path: Path, damage: Callable[[Path], object]) -> None:
    """Damages a file, whose checksum is that of what it holds then."""
    damage(path)
    seal(path.parent)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    seal(folder)


def drop_from_config(folder: Path, key: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    seal(folder)


def other_adapter(folder: Path) -> None:
    """The tensors of a model of other dims, as after a copy that mixed two models up."""
    tensors = {"weight": torch.eye(6), "logits": torch.ones(6)}
    other = Model([FrozenStage(3, "linear", tensors), make_stage("linear", 3, 2, 0)], 6, {"dims": [6, 3, 2]}, {})
    other.save(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "adapter.safetensors", folder / "adapter.safetensors")


def other_matrix(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    save_file(load_file(path) | {"matrix": torch.eye(6)}, path)
    seal(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def into_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "nothing is there"),
    "a file": (into_a_file, "not a model folder (it is a file); give the folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no metrics": (lambda f: (f / "metrics.json").unlink(), "metrics.json is missing"),
    "no adapter": (lambda f: (f / "adapter.safetensors").unlink(), "adapter.safetensors is missing"),
    "cut adapter": (lambda f: spoil(f / "adapter.safetensors", cut), "damaged"),
    "empty adapter": (lambda f: spoil(f / "adapter.safetensors", lambda path: path.write_bytes(b"")), "damaged"),
    "cut config": (lambda f: spoil(f / "config.json", cut), "damaged"),
    "cut metrics": (lambda f: spoil(f / "metrics.json", lambda path: path.write_text("{")), "damaged"),
    "config of bytes": (lambda f: spoil(f / "config.json", lambda path: path.write_bytes(b"\xff\xfe\x00")), "damaged"),
    "another config": (lambda f: (f / "config.json").write_text("{}"), "config.json: is not as it was written"),
    "no checksums": (lambda f: (f / SUMS).unlink(), "SHA256SUMS: is missing"),
    "cut checksums": (lambda f: cut(f / SUMS), "SHA256SUMS: is damaged"),
    "config of another thing": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "config without stages": (lambda f: drop_from_config(f, "stages"), "stages"),
    "config without dims": (lambda f: drop_from_config(f, "dims"), "dims"),
    "later format": (lambda f: edit_config(f, format=3), "config.json: not a config of format 1 to 2"),
    "stage too many": (
        lambda f: edit_config(f, stages=[{"dim": 4, "projection": "linear"}] * 3),
        "stages.2.weight is missing",
    ),
    "adapter of another model": (other_adapter, "adapter.safetensors"),
    "matrix of other dims": (other_matrix, "matrix is (6, 6)"),
    "other kind of stage": (
        lambda f: edit_config(f, stages=[{"dim": 4, "projection": "residual_mlp"}] * 2),
        "stages.0.up is missing",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused_by_name(folder: Path, case: str) -> None:
    damage, why = DAMAGED[case]
    damage(folder)
    with pytest.raises(InputError) as refused:
        load(folder)
    assert str(folder) in str(refused.value)
    assert why in str(refused.value)


class Payload:
    """What a hostile file would do when unpickled: make a folder."""

    def __init__(self, made: str) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.made,)


def with_header_of(content: bytes, length: int) -> bytes:
    """The same tensors, in a safetensors file whose header is filled up to a length."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip(b" ").ljust(length, b" ")
    assert len(header) == length
    return length.to_bytes(8, "little") + header + content[end:]


def test_a_header_of_any_length_is_read(folder: Path) -> None:
    # the length is the file's first bytes, and those of 128 modulo 256 are pickle's, too
    path, expected = folder / "adapter.safetensors", make_model().encode(vectors())
    content = path.read_bytes()
    for length in range(1024, 1024 + 256):
        path.write_bytes(with_header_of(content, length))
        seal(folder)
        np.testing.assert_array_equal(load(folder).encode(vectors()), expected)
    assert with_header_of(content, 1024 + 128).startswith(b"\x80")


def test_a_damaged_file_whose_length_is_that_of_pickle_is_called_damaged(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(with_header_of(path.read_bytes(), 1024 + 128)[:-1])
    seal(folder)
    with pytest.raises(InputError, match=r"adapter\.safetensors: is damaged"):
        load(folder)


def test_models_of_any_dims_are_read_back(tmp_path: Path) -> None:
    first_bytes = set()
    for input_dim in range(16, 385, 8):
        dims = [input_dim, input_dim]
        while dims[-1] > 8 and len(dims) < 7:
            dims.append(dims[-1] // 2)
            stages = [
                FrozenStage(dim, "linear", {"weight": torch.eye(d_in), "logits": torch.zeros(d_in)})
                for d_in, dim in pairwise(dims)
            ]
            model = Model(stages, input_dim, {"dims": dims[1:]}, {})
            model.save(tmp_path)
            assert load(tmp_path).encode(np.ones(input_dim)).shape == (input_dim,)
            first_bytes.add((tmp_path / "adapter.safetensors").read_bytes()[:1])
    assert b"\x80" in first_bytes


def test_a_pickle_in_place_of_the_tensors_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (folder / "adapter.safetensors").write_bytes(pickle.dumps(Payload(str(made))))
    with pytest.raises(InputError, match="is a pickle, which runs code when it is read"):
        load(folder)
    torch.save({"stages.0.weight": Payload(str(made))}, folder / "adapter.safetensors")
    with pytest.raises(InputError, match="is a pickle, which runs code when it is read"):
        load(folder)
    assert not made.exists()
    # the payload would have worked
    pickle.loads(pickle.dumps(Payload(str(made))))
    assert made.exists()


WIDE = 64
BASE_DIMS = (64, 32, 16)


def random_matrix(dim: int, seed: int) -> torch.Tensor:
    """Random, but leaves what matters in the first dims, as a trained stage does."""
    return torch.eye(dim) + 0.4 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)) / dim**0.5


def random_rotation(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random_matrix(dim, seed))[0]


def make_base(last: Projection = "linear") -> Model:
    """64 to 64 to 32 to 16 dims, by random stages."""
    shapes: list[tuple[int, int, Projection]] = [(64, 64, "linear"), (64, 32, "linear"), (32, 16, last)]
    stages = []
    for seed, (d_in, dim, kind) in enumerate(shapes):
        tensors = make_stage(kind, d_in, dim, seed).tensors
        stages.append(FrozenStage(dim, kind, tensors | {"weight": random_matrix(d_in, seed)}))
    return Model(stages, WIDE, {"dims": list(BASE_DIMS), "train": {"seed": 3}}, {})


def added_stages(error: float = 0.0) -> list[FrozenStage]:
    """16 to 8 to 4 dims, by random rotations; every number of them off by `error` at random."""
    made = []
    for d_in, dim in ((16, 8), (8, 4)):
        noise_II = error * torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(dim))
        tensors = {"weight": random_rotation(d_in, dim) + noise_II, "logits": torch.linspace(1, -1, d_in)}
        made.append(FrozenStage(dim, "rotation", tensors))
    return made


def make_extended(base: Model, error: float = 0.0) -> Model:
    return base.extended(added_stages(error), {"dims": [64, 8, 4], "train": {"seed": 4}}, {"dev": {}})


def wide_vectors(rows: int = 200) -> np.ndarray:
    scale_D = 1 / np.arange(1, WIDE + 1)
    return (scale_D * np.random.default_rng(1).standard_normal((rows, WIDE))).astype(np.float32)


def cosines(z_Nd: np.ndarray) -> np.ndarray:
    return z_Nd.astype(np.float64) @ z_Nd.T.astype(np.float64)


@pytest.mark.parametrize("last", ["linear", "residual_mlp"])
def test_an_extended_model_keeps_what_its_base_gave_and_adds_dims(tmp_path: Path, last: Projection) -> None:
    base = make_base(last)
    make_extended(base).save(tmp_path)
    model = load(tmp_path)
    assert model.dims == (64, 32, 16, 8, 4)
    assert model.base == (base.fingerprint, BASE_DIMS, 3)
    assert json.loads((tmp_path / "config.json").read_text())["base"] == {
        "fingerprint": base.fingerprint,
        "dims": list(BASE_DIMS),
        "stages": 3,
    }
    assert f"extends model {base.fingerprint}" in (tmp_path / "README.md").read_text()
    for dim in range(16, WIDE + 1):
        change_NN = cosines(model.encode(wide_vectors(), dim)) - cosines(base.encode(wide_vectors(), dim))
        assert np.abs(change_NN).max() < 1e-5
    assert not np.allclose(cosines(model.encode(wide_vectors(), 8)), cosines(base.encode(wide_vectors(), 8)), atol=0.1)


def test_the_rounding_of_a_training_does_not_show_in_the_cosines() -> None:
    base = make_base()
    model = make_extended(base, error=1e-4)
    for dim in BASE_DIMS:
        change_NN = cosines(model.encode(wide_vectors(), dim)) - cosines(base.encode(wide_vectors(), dim))
        assert np.abs(change_NN).max() < 1e-5


@pytest.mark.parametrize("last", ["linear", "residual_mlp"])
@pytest.mark.parametrize("width", [64, 40, 32, 16])
def test_upgraded_vectors_are_what_the_new_model_gives_for_the_originals(last: Projection, width: int) -> None:
    base = make_base(last)
    model = make_extended(base)
    stored_Nw = base.encode(wide_vectors(), width)
    np.testing.assert_allclose(model.upgrade(stored_Nw), model.encode(wide_vectors(), width), atol=1e-6)
    for dim in [dim for dim in (*range(16, width + 1), *model.dims) if dim <= width]:
        upgraded = model.upgrade(torch.from_numpy(stored_Nw), dim)
        assert isinstance(upgraded, torch.Tensor)
        np.testing.assert_allclose(upgraded.numpy(), model.encode(wide_vectors(), dim), atol=1e-6)


def test_one_stored_vector_and_lists_are_upgraded() -> None:
    base = make_base()
    model, stored_Nw = make_extended(base), base.encode(wide_vectors(5), 32)
    expected_Nd = model.upgrade(stored_Nw, 24)
    for given in (stored_Nw.tolist(), stored_Nw.astype(np.float64), list(stored_Nw)):
        np.testing.assert_allclose(model.upgrade(given, 24), expected_Nd, atol=1e-6)
        np.testing.assert_allclose(model.upgrade(given[3], 24), expected_Nd[3], atol=1e-6)
    one = model.upgrade(torch.from_numpy(stored_Nw[3]))
    assert isinstance(one, torch.Tensor)
    assert one.shape == (32,)


def test_vectors_are_upgraded_from_model_to_model() -> None:
    first = make_base()
    second = make_extended(first)
    rotation = {"weight": random_rotation(4, 0), "logits": torch.zeros(4)}
    third = second.extended([FrozenStage(3, "rotation", rotation)], {"dims": [64, 3]}, {})
    assert third.dims == (64, 32, 16, 8, 4, 3)
    assert third.base == (second.fingerprint, second.dims, 5)
    stored_Nw = second.upgrade(first.encode(wide_vectors(), 32))
    np.testing.assert_allclose(third.upgrade(stored_Nw, 3), third.encode(wide_vectors(), 3), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dim", "why"),
    [
        ((3, 15), None, r"have 15 dims, but an upgrade needs the first 16 to 64 of the model [0-9a-f]{12}; encode"),
        ((3, 65), None, r"have shape \(3, 65\); upgrade takes \(N, 16 to 64\)"),
        ((2, 3, 32), None, r"have shape \(2, 3, 32\)"),
        ((15,), None, r"have 15 dims"),
        ((3, 32), 33, r"dim is 33, but the vectors to upgrade have 32 dims"),
        ((3, 32), 0, r"dim is 0"),
        ((3, 32), 8.0, r"dim is 8\.0, but the vectors to upgrade have 32 dims"),
    ],
)
def test_vectors_that_cannot_be_upgraded_are_refused(shape: tuple[int, ...], dim: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        make_extended(make_base()).upgrade(np.ones(shape, np.float32), dim)


def test_a_model_that_extends_no_other_upgrades_nothing() -> None:
    base = make_base()
    assert base.base is None
    with pytest.raises(InputError, match="extends no other"):
        base.upgrade(base.encode(wide_vectors()))


def test_only_rotations_of_the_smallest_block_extend_a_model() -> None:
    base, (first, second) = make_base(), added_stages()
    for stages, why in (
        ([make_stage("linear", 16, 8, 0), second], r"stage 3 \(linear\) is no rotation"),
        ([first, FrozenStage(4, "rotation", make_stage("linear", 8, 4, 0).tensors)], r"stage 4 \(rotation\) is no rot"),
        ([make_stage("residual_mlp", 16, 8, 0), second], r"stage 3 \(residual_mlp\) is no rotation"),
        ([second], "stage 3 takes 8 dims, the one before gives 16"),
        ([*base.stages, first, second], "stage 3 takes 64 dims"),
    ):
        with pytest.raises(InputError, match=why):
            base.extended(stages, {"dims": [64, 8, 4]}, {})


def test_dims_that_no_stage_keeps_are_refused() -> None:
    with pytest.raises(InputError, match=r"no stage keeps 40 dims; name one of \[64, 32, 16, 8, 4\]"):
        make_base().extended(added_stages(), {"dims": [64, 40, 8]}, {})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stages": 5}, "base: has 5 stages, of a model with 5"),
        ({"stages": 2, "dims": [64, 32]}, "stage 2 extends the base and must be a rotation, but is 'linear'"),
        ({"stages": "3"}, "base: has 3 stages"),
        ({"dims": [64, 8]}, "base: its dims"),
        ({"dims": None}, "do not fit together"),
        ({"fingerprint": "abc"}, "base: fingerprint 'abc' is no sha256"),
        ({"more": 1}, "base must hold fingerprint, dims, stages"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    model = make_extended(make_base())
    model.save(tmp_path)
    edit_config(tmp_path, base=model.config["base"] | changes)
    with pytest.raises(InputError, match=why):
        load(tmp_path)


def test_a_model_takes_nothing_over_of_the_one_it_replaces(tmp_path: Path) -> None:
    folder, history = tmp_path / "model", tmp_path / "history"
    (folder / "mine").mkdir(parents=True)
    history.write_text('{"step": 1}\n')
    make_model().write(folder, history)
    assert "history.jsonl" in (folder / "SHA256SUMS").read_text()
    make_model().save(folder)
    assert not (folder / "history.jsonl").exists()
    assert "history.jsonl" not in (folder / "SHA256SUMS").read_text()
    assert (folder / "mine").is_dir()


KILLED = """
import os, signal, sys
import smec_core.model.model as module
from tests.smec_core.model.test_model import make_model

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, sys.argv[2], kill)
make_model(seed=9).save(sys.argv[1])
"""


@pytest.mark.parametrize("before", ["model_card", "write_sums"])
def test_a_kill_leaves_the_model_that_was_there(tmp_path: Path, before: str) -> None:
    model = make_model()
    model.save(tmp_path / "model")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), before]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
    assert load(tmp_path / "model").fingerprint == model.fingerprint
