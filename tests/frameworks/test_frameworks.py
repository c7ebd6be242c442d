"""The snippets of docs/frameworks.md, each run with the real framework, without a network, on a real export."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.export.job import run
from pipelines.export.settings import ExportSettings
from smec_core.model.adapter import FrozenStage
from smec_core.model.files import load
from smec_core.model.model import Model
from tests.own_environment import own_environment

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/frameworks.md"
SNIPPETS = dict(re.findall(r"\*\*([\w-]+)\*\*: .*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
DIM = 96
TEXTS = ["Cats purr when they are content.", "The sea is salt."]
QUERY = "why do cats purr?"
VECTORS = {
    "LangChain": "[embeddings.embed_query(QUERY), *embeddings.embed_documents(TEXTS)]",
    "LlamaIndex": "[embed_model.get_query_embedding(QUERY), *map(embed_model.get_text_embedding, TEXTS)]",
    "Haystack": "[vector, *[one.embedding for one in store.filter_documents()]]",
}
"""What of a snippet gives the vectors of the query and of the texts."""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with the frameworks."""
    requirements = Path(__file__).with_name("requirements.txt")
    return own_environment("frameworks", requirements, is_layer=True) / "bin/python"


@pytest.fixture(scope="module")
def folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and the `text-model` that the page takes."""
    folder = tmp_path_factory.mktemp("frameworks")
    weight = torch.linalg.qr(torch.randn(384, 384, generator=torch.Generator().manual_seed(0)))[0]
    stage = FrozenStage(DIM, "linear", {"weight": weight, "logits": torch.ones(384)})
    Model([stage], 384, {"dims": [384, DIM]}, {}).save(folder / "model")
    out = {"model": str(folder / "model"), "out": str(folder / "text-model")}
    run(ExportSettings(to="sentence-transformers", encoder=str(encoder), **out))
    return folder


def output(python: Path, folder: Path, script: str) -> str:
    """What a script prints, in a process that reaches nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "HOME": str(folder)}
    # a proxy at which nobody listens
    offline |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [python, "-c", script], cwd=folder, env=environment | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_snippet_of_the_page_is_run_here() -> None:
    assert len(SNIPPETS) == PAGE.read_text().count("```python")
    assert SNIPPETS.keys() == VECTORS.keys() | {"sentence-transformers", "MTEB"}


@pytest.mark.parametrize("name", VECTORS)
def test_it_finds_what_is_asked_for_by_the_vectors_of_the_model(
    name: str, python: Path, folder: Path, encoder: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    given = f"\nimport json\nQUERY, TEXTS = {QUERY!r}, {TEXTS!r}\nprint(json.dumps({VECTORS[name]}))"
    *_, found, vectors = output(python, folder, SNIPPETS[name] + given).splitlines()
    assert found == TEXTS[0]
    originals_ND = SentenceTransformer(str(encoder), device="cpu").encode([QUERY, *TEXTS])
    expected_Nd = load(folder / "model").encode(originals_ND, DIM)
    np.testing.assert_allclose(json.loads(vectors), expected_Nd, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sentence-transformers", "MTEB"])
def test_it_is_evaluated(name: str, python: Path, folder: Path) -> None:
    assert float(output(python, folder, SNIPPETS[name]).splitlines()[-1]) == 1.0
