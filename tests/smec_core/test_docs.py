"""What the documentation shows in Python runs."""

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smec_core
from smec_core.data.parquet import embedding_column
from tests.publishing import publish
from tests.smec_core.given import given

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTED = [
    "smec_core.training.fit",
    "smec_core.data.forms",
    "smec_core.evaluation.report",
    "smec_core.model.files",
    "smec_core.model.model",
    "smec_core.model.published",
    "smec_core.sklearn",
]


@pytest.fixture(scope="module")
def model() -> smec_core.Model:
    data = given()
    return smec_core.fit(data.corpus, data.queries, data.qrels, dims=[16, 8], epochs=1, progress=False)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_run(name: str, model: smec_core.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, module = given(), import_module(name)
    model.save("model")
    table = {"id": list(map(str, range(300))), "price": np.arange(300.0), "embedding": embedding_column(data.corpus)}
    pq.write_table(pa.table(table), "corpus.parquet")
    publish("compressed", "model", "corpus.parquet", 8, dtype="int8")
    known = {**vars(module), "smec_core": smec_core, "model": model, **data._asdict()}
    ran = 0
    for test in doctest.DocTestFinder().find(module, globs=known):
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        told: list[str] = []
        runner.run(test, out=told.append)
        assert not runner.failures, "".join(told)
        ran += runner.tries
    assert ran


def test_the_guides_script_runs(tmp_path: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL)
    assert len(script.splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ndcg@10 on test, 100 queries" in done.stdout
    assert smec_core.load(tmp_path / "small-model").dims == (64, 32, 16)


def test_importing_it_is_light() -> None:
    script = "import sys, smec_core; smec_core.InputError; smec_core.__version__; dir(smec_core); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pyarrow", "pandas", "sklearn", "ray", "tqdm"} & {*done.stdout.split()}


def test_training_needs_neither_ray_nor_mlflow() -> None:
    script = (
        "import sys, numpy as np, smec_core; x = np.random.default_rng(0).normal(size=(60, 8))\n"
        "smec_core.fit(x, dims=4, epochs=1, progress=False).evaluate(x); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"ray", "mlflow", "sklearn", "datasets", "polars"} & {*done.stdout.split()}


def test_all_that_is_offered_is_there() -> None:
    assert {*smec_core.__all__} <= {*dir(smec_core)}
    assert all(getattr(smec_core, name) is not None for name in smec_core.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        smec_core.fitt  # noqa: B018
