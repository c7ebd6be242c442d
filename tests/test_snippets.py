"""Every command and example of README and the guides is run, page by page, from top to bottom.

What cannot be run here is in SKIPPED, with the reason; what would take hours is made smaller by CHANGED.
"""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [Path("README.md"), *sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:    [^\n]*\n)+")

SKIPPED = {
    r"make |\. \.venv": "CI itself, and tests/deploy/test_package.py",
    r"ray (get-auth-token|up|dashboard)|export |smec submit": "tests/deploy, on a cluster with a token",
    r"smec export|import (onnxruntime|faiss)|from sentence_transformers|index =|empty =": "tests/pipelines/export",
    r"from (langchain_core|llama_index|haystack)|import mteb": "tests/frameworks, in an environment of their own",
    r"import sys\n\nsys.path.insert": "tests/pipelines/export",
    r"mlflow |curl -H": "tests/pipelines/tracking, which has the run's id",
    r"smec judge": "tests/pipelines/judge: DATA has judgements here",
    r"smec rollback": "tests/pipelines/retrain: it needs two releases",
    r"name: products": "tests/pipelines/retrain: it needs s3://bucket",
    r" +lr: ": "tests/tune_spaces",
    r"from ray import serve": "tests/pipelines/serve, on a cluster",
    r"\$ smec train --data data/scifact": "a picture of what it prints",
    r"CREATE INDEX": "tests/examples",
}
"""What begins so is not run, and where it is tried instead."""
CHANGED = {
    "--encoder sentence-transformers/all-mpnet-base-v2": "--encoder ENCODER",
    "TEXT DATA": "TEXT new",
    "--trials 30": "--trials 2",
    "--seeds 3": "--seeds 1 --methods pca,within",
    "dims 384,192,96,48,24": "dims 96,24",
}
LINES_OF_PYTHON = "import duckdb, polars, pyarrow.parquet\n"


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Kind (`python`, `sql`, ...; empty for what is indented) and text of each block, in order."""
    text = (REPOSITORY / page).read_text()
    found = [(match.start(), match[1] or "text", match[2]) for match in FENCE.finditer(text)]
    bare = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in INDENTED.finditer(bare):
        before = bare[: match.start()].count("\n")
        lines = text.split("\n")[before : before + match[0].count("\n")]
        found.append((len("\n".join(text.split("\n")[:before])), "", "\n".join(line[4:] for line in lines) + "\n"))
    return [(kind, block) for _, kind, block in sorted(found)]


def steps_of(page: Path) -> Iterator[tuple[str, str]]:
    """What to run, and by what: whole blocks of Python, files and notes, and commands one by one."""
    for kind, block in blocks_of(page):
        if kind or re.match(r" *[a-z_]+: ", block):
            yield kind or "file", block
        elif re.match(r"(pyarrow|polars|duckdb)\.", block):
            yield "python", LINES_OF_PYTHON + block
        else:
            # a command goes on after a pipe, a backslash and with more indentation
            for command in re.split(r"\n(?![ \n]|$)", block):
                yield "shell", command


def reason_to_skip(text: str) -> str | None:
    """Where a step is tried instead."""
    return next((reason for start, reason in SKIPPED.items() if re.match(start, text)), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take as given: DATA, TEXT and a model in `model`."""
    root = tmp_path_factory.mktemp("given")
    smec(root, "smec sample DATA --size 600 && mkdir DATA/corpus && mv DATA/corpus.parquet DATA/corpus/0.parquet")
    # as the pages do: there it is finished already
    smec(root, "smec train --data DATA --dims 384,192,96 --workers 2 --out model")
    smec(root, "smec compress --model model --input DATA/corpus --output compressed --dim 96")
    (root / "TEXT/qrels").mkdir(parents=True)
    texts = [f"document number {number} tells of {number % 7} things" for number in range(40)]
    for name in ("corpus", "queries"):
        lines = [f'{{"_id": "{name[0]}{number}", "text": "{text}"}}' for number, text in enumerate(texts)]
        (root / f"TEXT/{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"q{number}\tc{number}\t1\n" for number in range(40))
    (root / "TEXT/qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (root / "train.yaml").write_text("{data: DATA, dims: [96], out: other, epochs: 1}\n")
    return root


def smec(folder: Path, command: str) -> None:
    """Runs a line of shell as a user would, with `smec` on the path."""
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_page_works(page: Path, made: Path, tmp_path: Path, encoder: Path, postgres: None) -> None:
    smec(tmp_path, f"cp -r {made}/. . && mkdir -p outputs/quickstart && ln -s {REPOSITORY}/examples examples")
    smec(tmp_path, "cp -r DATA outputs/quickstart/data && cp -r model outputs/quickstart/model")
    served = None
    # files first: a page shows the command before the file that it takes
    for kind, text in sorted(steps_of(page), key=lambda step: step[0] != "file"):
        if reason_to_skip(text):
            continue
        for old, new in CHANGED.items():
            text = text.replace(old, new)
        text = text.replace("ENCODER", str(encoder))
        if kind == "python":
            (tmp_path / "snippet.py").write_text(text)
            smec(tmp_path, f"{sys.executable} snippet.py")
        elif kind == "file":
            (tmp_path / "retrain.yaml").write_text(text)
        elif kind == "shell" and text.startswith("smec serve"):
            served = subprocess.Popen([sys.executable, "-m", "smec_core", *text.split()[1:]], cwd=tmp_path)
            wait_for("http://127.0.0.1:8000/healthz")
        elif kind == "shell":
            smec(tmp_path, text)
        else:
            pytest.fail(f"{page}: nothing here knows how to run this {kind}:\n{text}")
    if served is not None:
        served.terminate()
        served.wait(60)


def wait_for(url: str) -> None:
    """Until a server answers."""
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"{url} does not answer")


def test_every_reason_to_skip_is_one() -> None:
    texts = [text for page in PAGES for _, text in steps_of(page)]
    for start in SKIPPED:
        assert any(re.match(start, text) for text in texts), f"nothing begins with {start} any more"
