"""Models on the Hugging Face Hub: the real client against a server that answers as the Hub does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

import smec_core
from smec_core.data.seen import SeenDocuments
from smec_core.errors import DamagedError, InputError, StoreError, StoreUnreachable
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from tests.hub import TOKEN, Hub

REPO = "someone/small"
PRIVATE_PLACE = "/home/someone/secret/data"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def model_of(seed: int, seen: bool = True) -> Model:
    weight = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)))[0]
    stage = FrozenStage(4, "rotation", {"weight": weight, "logits": torch.zeros(8)})
    config = {"dims": [8, 4], "data": {"uri": PRIVATE_PLACE, "fingerprint": "abc"}}
    return Model([stage], 8, config, {}, SeenDocuments(np.arange(3, dtype=np.uint64)) if seen else None)


def test_what_is_pushed_is_what_is_loaded(hub: Hub, token: None, tmp_path: Path) -> None:
    model = model_of(0)
    at = model.push_to_hub(REPO)
    assert at == f"hf://{REPO}@{1:040d}"
    for place in (at, f"hf://{REPO}", f"hf://{REPO}@main"):
        back = smec_core.load(place)
        assert back.fingerprint == model.fingerprint
        assert back.seen is not None and back.seen.hash_S.tolist() == [0, 1, 2]
    files = hub.repos[REPO][0]
    assert set(load_tensors(files["adapter.safetensors"])) == {"matrix", "stages.0.weight", "stages.0.logits"}
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: smec-ray\n") and f'smec_core.load("hf://{REPO}")' in card
    assert PRIVATE_PLACE.encode() not in b"".join(files.values())
    assert model.config["data"]["uri"] == PRIVATE_PLACE
    # what is there is a whole model folder, by its own checksums
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert smec_core.load(tmp_path).fingerprint == model.fingerprint


def test_a_later_push_replaces_the_model_as_a_whole(hub: Hub, token: None) -> None:
    first = model_of(0).push_to_hub(REPO)
    second = model_of(1, seen=False).push_to_hub(REPO, message="Without what it has learnt from")
    assert "seen.safetensors" in hub.repos[REPO][0] and "seen.safetensors" not in hub.repos[REPO][1]
    assert smec_core.load(first).fingerprint == model_of(0).fingerprint
    assert smec_core.load(f"hf://{REPO}").fingerprint == model_of(1).fingerprint
    assert second.endswith(f"@{2:040d}")


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_made_private_unless_it_is_asked_for(
    hub: Hub, token: None, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    if private:
        model_of(0).push_to_hub(REPO)
    else:
        model_of(0).push_to_hub(REPO, private=False)
    monkeypatch.delenv("HF_TOKEN")
    if private:
        with pytest.raises(InputError, match=r"no such model, .*set HF_TOKEN if it is private"):
            smec_core.load(f"hf://{REPO}")
    else:
        smec_core.load(f"hf://{REPO}")


def test_what_was_altered_on_the_hub_is_refused(hub: Hub, token: None) -> None:
    model_of(0).push_to_hub(REPO)
    config = json.loads(hub.repos[REPO][0]["config.json"])
    hub.repos[REPO][0]["config.json"] = json.dumps(config | {"dims": [8, 2]}).encode()
    with pytest.raises(DamagedError, match=r"hf://someone/small/config.json: is not as it was written"):
        smec_core.load(f"hf://{REPO}")


@pytest.mark.parametrize("repo", ["small", "someone/small/more", "some one/small", "someone/small@main"])
def test_a_name_that_is_none_is_refused(hub: Hub, token: None, repo: str) -> None:
    with pytest.raises(InputError, match=r"is not of the form hf://USER/NAME \("):
        model_of(0).push_to_hub(repo)


def test_a_hub_that_refuses_or_fails_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"hf://someone/small: the Hub refuses it \(.*; check the name and HF_TOKEN"):
        model_of(0).push_to_hub(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fails, hub.status = "/commit/", 500
    with pytest.raises(StoreUnreachable, match=r"hf://someone/small: the Hub cannot serve it now"):
        model_of(0).push_to_hub(REPO)
    assert hub.repos[REPO] == []
