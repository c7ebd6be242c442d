"""`smec sample`: a dataset made of documentation that every installation already has, so nothing is downloaded.

A pair is one documented function or class of the Python standard library or of a package this project depends on: the
first paragraph of its docstring is the query, the rest is the document, and only they are relevant to each other.
Vectors are TF-IDF followed by a Gaussian random projection. The sources are parsed, never imported.

The sample is a function of its settings and of the versions in sample.json: two installations with the same
versions (constraints.txt) write the same bytes. So that this holds across distributions of Python, their optional parts
are left out, as are tests and vendored copies. Which split a pair belongs to depends on its own text only, so it stays
there when the size, the seed or a version changes.

Shapes: N pairs, V terms of the vocabulary, D embedding dims.
"""

import ast
import gc
import hashlib
import json
import os
import platform
import re
import shutil
import sysconfig
import warnings
from collections import Counter
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
from pipelines.storage.model_folder import put_in_place
from smec_core.data.parquet import write_embeddings
from smec_core.errors import InputError, SmecError

RECIPE = 1
"""Counts up when a change to this file changes what the same settings and versions give."""

PACKAGES = {
    **{name: name for name in ("jinja2", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "ray")},
    **{name: name for name in ("rich", "safetensors", "scipy", "torch", "typer")},
    "sklearn": "scikit-learn",
}
"""Import names and distributions of the packages read. A fixed list: what else is installed does not matter;
plotly is left out because most of its docstrings are generated from one template."""

SKIPPED_FOLDERS = {
    *("test", "testing", "tests"),
    *("dist-packages", "site-packages"),  # within the standard library's folder
    *("_vendor", "externals", "thirdparty", "thirdparty_files", "vendor"),  # copies of other packages
    *("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"),  # not in every distribution of Python
}
MIN_QUERY_WORDS, MIN_DOCUMENT_WORDS = 5, 20
TEST_SHARE = 5
"""One group in so many is for testing."""

PARAGRAPH_END = re.compile(r"\n\s*\n")
NO_WORD = re.compile(r"[\W\d_]+")
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


class Group(NamedTuple):
    """Pairs that share a name, a query or a document, up to case, digits and punctuation; `pair` stands for all."""

    key: str
    pair: Pair

    @property
    def is_test(self) -> bool:
        """Whether the query is for testing."""
        return int(_digest("split", self.key), 16) % TEST_SHARE == 0


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
    out = Path(settings.out).resolve()
    origin: dict[str, Any] = {
        "recipe": RECIPE,
        "settings": settings.model_dump(exclude={"out"}),
        "sources": {source.distribution: source.version for source in sources},
        "made_with": {name: version(name) for name in ("numpy", "pyarrow", "scikit-learn", "scipy")},
    }
    earlier = earlier_sample(out)
    if earlier and all(earlier.get(key) == value for key, value in origin.items()):
        say(f"{settings.out}: the same sample is there already ({describe(earlier)})")
        return {"out": settings.out, "kept": True, **earlier}

    say("Reading documentation: " + ", ".join(f"{name} {number}" for name, number in origin["sources"].items()))
    groups = grouped(read_sources(sources), settings.seed)[: settings.size]
    if len(groups) < MIN_PAIRS:
        where = ", ".join(str(source.root) for source in sources)
        raise SmecError(f"only {len(groups)} documented objects found; are the Python sources installed in {where}?")
    # mkdir obeys the umask (tempfile would not); a sibling can be renamed into place
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        record = write_sample(partial, groups, origin)
        put_in_place(partial, out)
    except OSError as error:
        raise SmecError(f"{settings.out}: cannot be written ({error}); name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{settings.out}: {describe(record)}")
    return {"out": settings.out, "kept": False, **record}


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


def read_sources(sources: Iterable[Source]) -> list[Pair]:
    """All documented objects of the sources."""
    # Syntax trees hold no cycles, and a collector that walks their millions of nodes doubles the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return [pair for source in sources for pair in documented_objects(source)]
    finally:
        if was_enabled:
            gc.enable()


def documented_objects(source: Source) -> Iterator[Pair]:
    """Functions and classes, at module or class level, whose docstring has more than one paragraph."""
    for path in sorted(source.root.rglob("*.py")):
        inner = path.relative_to(source.root)
        if not SKIPPED_FOLDERS.isdisjoint(inner.parts):
            continue
        code = path.read_bytes()
        if b'"""' not in code and b"'''" not in code:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # about the escapes in other people's strings
                tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError):  # a template, or written for another Python
            continue
        parts = [source.package, *inner.with_suffix("").parts]
        module = ".".join(part for part in parts if part not in ("", "__init__"))
        for name, docstring in _docstrings(module, tree):
            query, *rest = PARAGRAPH_END.split(docstring, maxsplit=1)
            if rest:
                yield Pair(name, source.distribution, query, rest[0])


def _docstrings(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop()
        for block in ("body", "orelse", "handlers", "finalbody"):
            for child in getattr(node, block, ()):
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    docstring = ast.get_docstring(child)
                    if docstring:
                        # a lone surrogate, written as an escape, is no text that a file can hold
                        yield f"{name}.{child.name}", docstring.encode("utf-8", "replace").decode()
                    if isinstance(child, ast.ClassDef):
                        pending.append((f"{name}.{child.name}", child))
                elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                    pending.append((name, child))


def grouped(pairs: Iterable[Pair], seed: int) -> list[Group]:
    """One pair for each set of copies, so that no text occurs twice and no copy crosses the splits; in hash order.

    Pairs are linked when they share a name, a query or a document after normalising; a group is everything linked. Its
    shortest name stands for it. Pairs with few words are left out.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    kept: list[tuple[str, Pair]] = []
    for pair in pairs:
        query, document = (NO_WORD.sub(" ", text.lower()).strip() for text in (pair.query, pair.document))
        if len(query.split()) >= MIN_QUERY_WORDS and len(document.split()) >= MIN_DOCUMENT_WORDS:
            kept.append((_digest("query", query), pair))
            for link in (f"query {query}", f"document {document}"):
                parent[root(link)] = root(f"name {pair.name}")
    members: dict[str, list[tuple[str, Pair]]] = {}
    for key, pair in kept:
        members.setdefault(root(f"name {pair.name}"), []).append((key, pair))
    # the least digest of its queries names a group: it hardly ever changes when another copy joins
    groups = [
        Group(min(key for key, _ in group), min((pair for _, pair in group), key=lambda pair: (len(pair.name), pair)))
        for group in members.values()
    ]
    return sorted(groups, key=lambda group: _digest(f"order {seed}", group.key))


def embed(queries: Sequence[str], documents: Sequence[str], dim: int, seed: int) -> tuple[np.ndarray, ...]:
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
    document_NV = tfidf.fit_transform(documents)
    query_NV = tfidf.transform(queries)
    rows = np.flatnonzero((document_NV.getnnz(axis=1) > 0) & (query_NV.getnnz(axis=1) > 0))
    # scikit-learn's GaussianRandomProjection draws float64: twice the memory and time for the same vectors
    projection_VD = np.random.default_rng(seed).standard_normal((document_NV.shape[1], dim), dtype=np.float32)
    query_ND, document_ND = query_NV[rows] @ projection_VD, document_NV[rows] @ projection_VD
    for vectors_ND in (query_ND, document_ND):
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return rows, query_ND, document_ND


def write_sample(folder: Path, groups: Sequence[Group], origin: dict[str, Any]) -> dict[str, Any]:
    """Writes the dataset and then sample.json, whose content is returned."""
    settings, pairs = origin["settings"], [group.pair for group in groups]
    rows, query_ND, document_ND = embed(
        [pair.query for pair in pairs], [pair.document for pair in pairs], settings["dim"], settings["seed"]
    )
    groups = [groups[row] for row in rows]
    pairs = [group.pair for group in groups]
    texts = pa.array([pair.document for pair in pairs], pa.string())
    write_embeddings(str(folder / "corpus.parquet"), [pair.name for pair in pairs], document_ND, extra={"text": texts})
    # by name, so that a query and its document do not have the same row: code that mixes up rows and ids shows
    order = sorted(range(len(pairs)), key=lambda row: pairs[row].name)
    texts = pa.array([pairs[row].query for row in order], pa.string())
    ids = [f"q:{pairs[row].name}" for row in order]
    write_embeddings(str(folder / "queries.parquet"), ids, query_ND[order], extra={"text": texts})
    (folder / "qrels").mkdir()
    queries = {}
    for split in ("train", "test"):
        names = [pairs[row].name for row in order if groups[row].is_test == (split == "test")]
        queries[split] = len(names)
        columns = {"query_id": [f"q:{name}" for name in names], "doc_id": names}
        scores = pa.array([1] * len(names), pa.int32())
        pq.write_table(pa.table({**columns, "score": scores}), folder / "qrels" / f"{split}.parquet")

    # the text and what turns it into vectors; not the vectors, whose last bits may depend on the processor
    content = [RECIPE, settings["dim"], settings["seed"], origin["made_with"], [(g.is_test, *g.pair) for g in groups]]
    record = {
        **origin,
        "pairs": len(pairs),
        "train_queries": queries["train"],
        "test_queries": queries["test"],
        "pairs_of_source": dict(sorted(Counter(pair.source for pair in pairs).items())),
        "fingerprint": _digest("sample", json.dumps(content))[:16],
        "files": {path.relative_to(folder).as_posix(): _checksum(path) for path in sorted(folder.rglob("*.parquet"))},
    }
    (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n")
    return record


def earlier_sample(out: Path) -> dict[str, Any] | None:
    """The record of the sample in `out`; None if there is nothing.

    Raises:
        InputError: `out` is not a sample, or was changed since it was written.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    cure = "name a new folder, or move this one away"
    try:
        record = json.loads((out / MARKER).read_text())
        files = record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{out}: exists and was not written by `smec sample`; {cure}") from None
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()} - {MARKER}
    for name in sorted(found | set(files)):
        if name not in found or _checksum(out / name) != files.get(name):
            raise InputError(f"{out}: {name} was added, changed or removed since `smec sample` wrote it; {cure}")
    return dict(record)


def describe(record: dict[str, Any]) -> str:
    """One line on what a sample holds."""
    counts = ", ".join(f"{name} {count}" for name, count in record["pairs_of_source"].items())
    return (
        f"{record['pairs']} pairs ({record['train_queries']} train, {record['test_queries']} test queries), "
        f"{record['settings']['dim']} dims; from {counts}"
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
