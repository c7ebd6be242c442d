"""`smec sample`: a dataset made of documentation that every installation already has, so nothing is downloaded.

A pair is one documented function or class of the Python standard library or of a package this project depends on: the
first paragraph of its docstring is the query, the rest is the document, and only they are relevant to each other.
Vectors are TF-IDF followed by a Gaussian random projection. The sources are parsed, never imported.

The sample is a function of its settings and of the versions in sample.json: the same versions give the same bytes.
Which split a pair belongs to depends on its own text only.

Shapes: N pairs, V terms of the vocabulary, D embedding dims.
"""

import ast
import gc
import hashlib
import json
import platform
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.console import say
from pipelines.data.settings import MIN_PAIRS, SampleSettings
from pipelines.storage.apart import file_above
from smec_core.data.parquet import write_embeddings
from smec_core.errors import InputError, SmecError, one_line
from smec_core.folders import replace_folder

RECIPE = 1
"""Counts up when a change to this file changes what the same settings and versions give."""
PACKAGES = {
    **{name: name for name in ("jinja2", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "ray")},
    **{name: name for name in ("rich", "safetensors", "scipy", "torch", "typer")},
    "sklearn": "scikit-learn",
}
"""Import names and distributions of the packages read. A fixed list: what else is installed does not matter.

One may be missing, as typer, which is installed only where another package needs it.
"""
SKIPPED_FOLDERS = {
    *("test", "testing", "tests", "dist-packages", "site-packages"),
    *("_vendor", "externals", "thirdparty", "thirdparty_files", "vendor"),  # copies of other packages
    *("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"),  # not in every distribution of Python
}
MIN_QUERY_WORDS, MIN_DOCUMENT_WORDS = 5, 20
TEST_SHARE = 5
"""One pair in so many is for testing."""
PARAGRAPH_END, NO_WORD = re.compile(r"\n\s*\n"), re.compile(r"[\W\d_]+")
MARKER = "sample.json"


class Source(NamedTuple):
    """A tree of Python files; `package` starts the names of its objects (empty for the standard library)."""

    distribution: str
    version: str
    package: str
    root: Path


class Pair(NamedTuple):
    """A documented object, and the distribution it is from."""

    name: str
    source: str
    query: str
    document: str


def run(settings: SampleSettings) -> dict[str, Any]:
    """Builds the sample dataset, or keeps the one that is there if it is the same.

    Returns:
        What sample.json holds, with `out`, and `kept`: whether an earlier sample was left as it is.

    Raises:
        InputError: `out` holds something else than an unchanged earlier sample.
    """
    return make_sample(settings, installed_sources())


def make_sample(settings: SampleSettings, sources: Sequence[Source]) -> dict[str, Any]:
    """`run` on the given sources."""
    out = Path(settings.out)
    record: dict[str, Any] = {
        "recipe": RECIPE,
        "settings": settings.model_dump(exclude={"out"}),
        "sources": {source.distribution: source.version for source in sources},
        "made_with": {name: version(name) for name in ("numpy", "pyarrow", "scikit-learn", "scipy")},
    }
    earlier = _earlier_sample(out.resolve())
    if kept := bool(earlier) and record.items() <= earlier.items():
        record = earlier
    else:
        say("Reading documentation: " + ", ".join(f"{name} {number}" for name, number in record["sources"].items()))
        pairs = unique(documented_objects(sources), settings.seed)[: settings.size]
        if len(pairs) < MIN_PAIRS:
            where = ", ".join(str(source.root) for source in sources)
            raise SmecError(f"only {len(pairs)} documented objects found; are the Python sources installed in {where}?")
        try:
            replace_folder(out, lambda folder: _write(folder, pairs, record))
        except OSError as error:
            raise SmecError(f"{settings.out}: cannot be written ({one_line(error)}); name another folder") from error
    counts = ", ".join(f"{name} {count}" for name, count in record["pairs_of_source"].items())
    say(
        f"{settings.out}: {'the same sample is there already, ' if kept else ''}{record['pairs']} pairs "
        f"({record['train_queries']} train, {record['test_queries']} test queries), {settings.dim} dims; from {counts}"
    )
    return {"out": settings.out, "kept": kept, **record}


def installed_sources() -> list[Source]:
    """The standard library and those of PACKAGES that are installed, found without importing any."""
    sources = [Source("python", platform.python_version(), "", Path(sysconfig.get_path("stdlib")))]
    for package, distribution in PACKAGES.items():
        spec = PathFinder.find_spec(package)
        try:
            if spec and spec.submodule_search_locations:
                root = Path(next(iter(spec.submodule_search_locations)))
                sources.append(Source(distribution, version(distribution), package, root))
        except PackageNotFoundError:
            continue
    return sources


def documented_objects(sources: Iterable[Source]) -> list[Pair]:
    """Functions and classes, at module or class level, whose docstring has more than one paragraph."""
    # syntax trees hold no cycles, and a collector that walks their millions of nodes doubles the time
    gc.disable()
    try:
        return [pair for source in sources for pair in _pairs_of(source)]
    finally:
        gc.enable()


def _pairs_of(source: Source) -> Iterator[Pair]:
    for path in sorted(source.root.rglob("*.py")):
        inner = path.relative_to(source.root)
        code = b"" if SKIPPED_FOLDERS & set(inner.parts) else path.read_bytes()
        if b'"""' not in code and b"'''" not in code:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # about the escapes in other people's strings
                tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError):  # a template, or written for another Python
            continue
        parts = [source.package, *inner.with_suffix("").parts]
        for name, docstring in _docstrings(".".join(part for part in parts if part not in ("", "__init__")), tree):
            query, *rest = PARAGRAPH_END.split(docstring, maxsplit=1)
            if rest:
                yield Pair(name, source.distribution, query, rest[0])


def _docstrings(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop()
        for child in (c for block in ("body", "orelse", "handlers", "finalbody") for c in getattr(node, block, ())):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if docstring := ast.get_docstring(child):
                    # a lone surrogate, written as an escape, is no text that a file can hold
                    yield f"{name}.{child.name}", docstring.encode("utf-8", "replace").decode()
                if isinstance(child, ast.ClassDef):
                    pending.append((f"{name}.{child.name}", child))
            elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                pending.append((name, child))


def unique(pairs: Iterable[Pair], seed: int) -> list[tuple[str, Pair]]:
    """One pair, with its key, of each set of copies, in hash order: no text occurs twice, no copy crosses the splits.

    Pairs are copies when they share a name, a query or a document, up to case, digits and punctuation, directly or
    through others. The shortest name stands for them. Pairs with few words are left out.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    kept: list[tuple[str, Pair]] = []
    for pair in pairs:
        query, document = (NO_WORD.sub(" ", text.lower()).strip() for text in (pair.query, pair.document))
        if len(query.split()) >= MIN_QUERY_WORDS and len(document.split()) >= MIN_DOCUMENT_WORDS:
            kept.append((_digest("query", query), pair))
            for link in (f"query {query}", f"document {document}"):
                parent[root(link)] = root(f"name {pair.name}")
    copies: defaultdict[str, list[tuple[str, Pair]]] = defaultdict(list)
    for key, pair in kept:
        copies[root(f"name {pair.name}")].append((key, pair))
    # the least digest of their queries hardly ever changes when another copy joins
    chosen = [
        (min(key for key, _ in same), min((pair for _, pair in same), key=lambda pair: (len(pair.name), pair)))
        for same in copies.values()
    ]
    return sorted(chosen, key=lambda keyed: _digest(f"order {seed}", keyed[0]))


def embed(pairs: Sequence[Pair], dim: int, seed: int) -> tuple[np.ndarray, ...]:
    """Vectors of N pairs.

    Returns:
        Rows of the pairs kept, (N,): those whose query and document both have a term of the vocabulary; then the unit
        vectors of their queries and of their documents, (N, D) float32.
    """
    tfidf = TfidfVectorizer(
        token_pattern="[a-z]{2,}",  # splits identifiers at underscores and digits
        stop_words="english",
        min_df=2,
        max_df=0.1,  # drops the section titles of docstrings
        sublinear_tf=True,
        dtype=np.float32,
    )
    document_NV = tfidf.fit_transform([pair.document for pair in pairs])
    query_NV = tfidf.transform([pair.query for pair in pairs])
    rows = np.flatnonzero((document_NV.getnnz(axis=1) > 0) & (query_NV.getnnz(axis=1) > 0))
    # scikit-learn's GaussianRandomProjection draws float64: twice the memory and time for the same vectors
    projection_VD = np.random.default_rng(seed).standard_normal((document_NV.shape[1], dim), dtype=np.float32)
    query_ND, document_ND = query_NV[rows] @ projection_VD, document_NV[rows] @ projection_VD
    for vectors_ND in (query_ND, document_ND):
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return rows, query_ND, document_ND


def _write(folder: Path, keyed: Sequence[tuple[str, Pair]], record: dict[str, Any]) -> None:
    """Writes the dataset, completes the record, and writes that to sample.json."""
    settings = record["settings"]
    rows, query_ND, document_ND = embed([pair for _, pair in keyed], settings["dim"], settings["seed"])
    pairs = [keyed[row][1] for row in rows]
    is_test = [int(_digest("split", keyed[row][0]), 16) % TEST_SHARE == 0 for row in rows]
    texts = pa.array([pair.document for pair in pairs], pa.string())
    write_embeddings(str(folder / "corpus.parquet"), [pair.name for pair in pairs], document_ND, extra={"text": texts})
    # by name, so that a query and its document do not have the same row: code that mixes up rows and ids shows
    order = sorted(range(len(pairs)), key=lambda row: pairs[row].name)
    texts = pa.array([pairs[row].query for row in order], pa.string())
    ids = [f"q:{pairs[row].name}" for row in order]
    write_embeddings(str(folder / "queries.parquet"), ids, query_ND[order], extra={"text": texts})
    (folder / "qrels").mkdir()
    for split in ("train", "test"):
        names = [pairs[row].name for row in order if is_test[row] == (split == "test")]
        record[f"{split}_queries"] = len(names)
        columns = {"query_id": [f"q:{name}" for name in names], "doc_id": names}
        scores = pa.array([1] * len(names), pa.int32())
        pq.write_table(pa.table({**columns, "score": scores}), folder / "qrels" / f"{split}.parquet")
    # the text and what turns it into vectors; not the vectors, whose last bits may depend on the processor
    texts_of = [(test, *pair) for test, pair in zip(is_test, pairs, strict=True)]
    content = [RECIPE, settings["dim"], settings["seed"], record["made_with"], texts_of]
    record |= {
        "pairs": len(pairs),
        "pairs_of_source": dict(sorted(Counter(pair.source for pair in pairs).items())),
        "fingerprint": _digest("sample", json.dumps(content))[:16],
        "files": {path.relative_to(folder).as_posix(): _checksum(path) for path in sorted(folder.rglob("*.parquet"))},
    }
    (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n")


def _earlier_sample(out: Path) -> dict[str, Any]:
    """The record of the sample in `out`; empty if there is nothing.

    Raises:
        InputError: `out` is not a sample, lies below a file, or was changed since it was written.
    """
    if below := file_above(out):
        raise InputError(f"out: {out} cannot be made, {below} is a file; name a new folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    cure = "name a new folder, or move this one away"
    try:
        record: dict[str, Any] = json.loads((out / MARKER).read_text())
        files = record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{out}: exists and was not written by `smec sample`; {cure}") from None
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()} - {MARKER}
    for name in sorted(found | set(files)):
        if name not in found or _checksum(out / name) != files.get(name):
            raise InputError(f"{out}: {name} was added, changed or removed since `smec sample` wrote it; {cure}")
    return record


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
