"""Model folders and `encode`: what a user loads, gets, and is told when something does not fit."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import smec_core
from smec_core.adapter import FrozenStage, apply_chain
from smec_core.config import Projection
from smec_core.errors import InputError
from smec_core.model import Model, load

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
    stages = [make_stage("free", DIM, 4, seed), make_stage(last, 4, 2, seed + 1)]
    return Model(stages, DIM, {"dims": [DIM, 4, 2], "train": {"seed": 3}}, {"dev": {"ndcg@10": {"2": 0.5}}})


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
    assert loaded.config["train"] == {"seed": 3}
    for dim in (None, *model.dims):
        np.testing.assert_array_equal(loaded.encode(vectors(), dim), model.encode(vectors(), dim))


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


def test_vectors_that_are_read_only_are_no_cause_for_a_warning() -> None:
    # as they come from Arrow
    x_ND = vectors()
    x_ND.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model().encode(x_ND, 4)


@pytest.mark.parametrize("dim", [0, -1, DIM + 1])
def test_a_dim_out_of_range_is_refused(dim: int) -> None:
    with pytest.raises(InputError, match=rf"dim is {dim}; this model gives 1 to 8, trained for \(8, 4, 2\)"):
        make_model().encode(vectors(), dim)


@pytest.mark.parametrize("shape", [(3, DIM - 1), (3, DIM + 1), (DIM,), (1, 3, DIM)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"embeddings have shape .*; this model takes \(N, 8\)"):
        make_model().encode(np.ones(shape, np.float32))


def test_other_weights_have_another_fingerprint() -> None:
    assert make_model().fingerprint == make_model().fingerprint
    assert make_model().fingerprint != make_model(seed=1).fingerprint


def test_the_card_says_how_to_use_the_model(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "Compresses 8-dim embeddings" in card
    assert "8, 4, 2 dims" in card
    assert "encode(embeddings, dim=2)" in card


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_from_config(folder: Path, key: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))


def other_adapter(folder: Path) -> None:
    """The tensors of a model of other dims, as after a copy that mixed two models up."""
    tensors = {"weight": torch.eye(6), "logits": torch.ones(6)}
    other = Model([FrozenStage(3, "free", tensors), make_stage("free", 3, 2, 0)], 6, {"dims": [6, 3, 2]}, {})
    other.save(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "adapter.safetensors", folder / "adapter.safetensors")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "config.json is missing"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no metrics": (lambda f: (f / "metrics.json").unlink(), "metrics.json is missing"),
    "no adapter": (lambda f: (f / "adapter.safetensors").unlink(), "adapter.safetensors is missing"),
    "cut adapter": (lambda f: cut(f / "adapter.safetensors"), "damaged"),
    "empty adapter": (lambda f: (f / "adapter.safetensors").write_bytes(b""), "damaged"),
    "cut config": (lambda f: cut(f / "config.json"), "damaged"),
    "cut metrics": (lambda f: (f / "metrics.json").write_text("{"), "damaged"),
    "config of bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "damaged"),
    "config of another thing": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "config without stages": (lambda f: drop_from_config(f, "stages"), "stages"),
    "config without dims": (lambda f: drop_from_config(f, "dims"), "dims"),
    "later format": (lambda f: edit_config(f, format=2), "config.json: not a config of format 1"),
    "stage too many": (
        lambda f: edit_config(f, stages=[{"dim": 4, "projection": "free"}] * 3),
        "stages.2.weight is missing",
    ),
    "adapter of another model": (other_adapter, "adapter.safetensors"),
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


def test_a_pickle_in_place_of_the_tensors_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (folder / "adapter.safetensors").write_bytes(pickle.dumps(Payload(str(made))))
    with pytest.raises(InputError, match="damaged model folder"):
        load(folder)
    torch.save({"stages.0.weight": Payload(str(made))}, folder / "adapter.safetensors")
    with pytest.raises(InputError, match="damaged model folder"):
        load(folder)
    assert not made.exists()
