"""A model that is not what was trained: every command refuses it in one line, before Ray starts, and makes nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import smec_core
from pipelines.cli import app
from smec_core.checksums import write_sums
from smec_core.model.model import SEALED
from tests.builders import write_dataset
from tests.smec_core.model.test_model import make_model

FILE = "adapter.safetensors"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def put_nan(file: Path) -> None:
    tensors = load_file(file)
    tensors["stages.1.weight"][1, 1] = torch.nan
    save_file(tensors, file)


def blank(file: Path) -> None:
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)


def sealed(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    """As somebody who writes the checksums, too."""

    def change(file: Path) -> None:
        spoil(file)
        write_sums(file.parent, [name for name in SEALED if (file.parent / name).exists()])

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip, r"is not as it was written: its checksum is not that of SHA256SUMS"),
    "cut": (cut, r"is not as it was written: its checksum is not that of SHA256SUMS"),
    "cut, sums anew": (sealed(cut), r"is damaged \(.+\)"),
    "NaN, sums anew": (sealed(put_nan), r"stages\.1\.weight holds NaN or infinity, or nothing but zeros"),
    "zeros, sums anew": (sealed(blank), r"\S+ holds NaN or infinity, or nothing but zeros"),
}


def commands(folder: Path) -> dict[str, list[str]]:
    """Each command that takes a model; what it makes would lie in the folder."""
    data, model, out = f"{folder}/data", f"{folder}/model", f"{folder}/out"
    train = ["train", "--data", data, "--out", out]
    compress = ["compress", "--input", f"{data}/corpus", "--output", out, "--dim", "4", "--model", model]
    return {
        "compress": compress,
        "compress --upgrade": [*compress, "--upgrade"],
        "evaluate": ["evaluate", "--data", data, "--json", f"{out}.json", "--model", model],
        "evaluate --index": ["evaluate", "--data", data, "--index", "exact", "--json", f"{out}.json", "--model", model],
        "export": ["export", "--to", "numpy", "--out", out, "--model", model],
        "report": ["report", model, "--out", out],
        "serve": ["serve", "--model", model],
        "train --from": [*train, "--dims", "1", "--from", model],
        "train --warm-start": [*train, "--dims", "4,2", "--warm-start", model],
    }


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", commands(Path()))
def test_a_damaged_model_is_refused_in_one_line_and_nothing_is_made(
    command: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("Ray was started")

    if command == "serve":
        pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra: serve)")
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data", docs=40, queries=40, dim=8)
    make_model().save(tmp_path / "model")
    smec_core.load(tmp_path / "model")
    spoil, problem = DAMAGES[damage]
    spoil(tmp_path / "model" / FILE)
    before = sorted(tmp_path.rglob("*"))

    result = CliRunner().invoke(app, commands(tmp_path)[command])
    printed = result.stdout + result.stderr
    assert result.exit_code == 2, printed
    assert re.fullmatch(rf"smec: {tmp_path}/model/{FILE}: {problem}; \w.*\n", printed)
    assert sorted(tmp_path.rglob("*")) == before
