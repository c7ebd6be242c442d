"""The sample dataset, built from small trees of sources written here."""

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.sample import PACKAGES, Pair, Source, documented_objects, installed_sources, make_sample, unique
from pipelines.data.settings import SampleSettings
from smec_core.data.parquet import EmbeddingTable
from smec_core.errors import InputError, SmecError

SYLLABLES = ("bra", "ko", "mi", "stu", "len", "va", "rop", "ti")
WORDS = ["".join(parts) for parts in itertools.product(SYLLABLES, repeat=3)]
PAIRS = 80


def docstring(seed: int) -> str:
    """Two paragraphs that share some words, as a summary and its explanation do."""
    rng = random.Random(seed)
    summary = rng.sample(WORDS, 7)
    text = rng.sample(summary, 4) + rng.choices(WORDS, k=24)
    return f"{' '.join(summary)}.\n\n    {' '.join(text[:14])}\n    {' '.join(text[14:])}\n"


def function(name: str, seed: int) -> str:
    return f'def {name}(x):\n    """{docstring(seed)}    """\n    return x\n\n\n'


def write_package(root: Path, files: dict[str, str]) -> Source:
    for name, code in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return Source(root.name, "1.0", root.name, root)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A package of 80 documented functions in two modules; importing either fails."""
    half = PAIRS // 2
    code = "".join(function(f"f{seed}", seed) for seed in range(half))
    more = "".join(function(f"g{seed}", seed) for seed in range(half, PAIRS))
    crash = 'raise RuntimeError("imported")\n\n'
    return write_package(tmp_path / "sources" / "pack", {"__init__.py": crash + code, "inner/more.py": crash + more})


def build(out: Path, *sources: Source, **settings: Any) -> dict[str, Any]:
    return make_sample(SampleSettings(out=str(out), **{"dim": 32, **settings}), sources)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ids(folder: Path, name: str) -> list[str]:
    return pq.read_table(folder / f"{name}.parquet")["id"].to_pylist()


def judgements(folder: Path, split: str) -> list[tuple[str, str, int]]:
    table = pq.read_table(folder / "qrels" / f"{split}.parquet")
    return list(zip(*(table[name].to_pylist() for name in ("query_id", "doc_id", "score")), strict=True))


def test_sample_is_a_dataset_of_the_data_contract(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sample"
    figures = build(out, source)

    corpus, queries = EmbeddingTable.open(str(out / "corpus")), EmbeddingTable.open(str(out / "queries"))
    assert corpus.rows == queries.rows == figures["pairs"] == PAIRS
    assert corpus.dim == queries.dim == 32
    for table in (corpus, queries):
        for block in table.blocks():  # refuses zero vectors and the like
            np.testing.assert_allclose(np.linalg.norm(block.vectors_ND, axis=1), 1, rtol=1e-5)
    train, test = judgements(out, "train"), judgements(out, "test")
    assert (len(train), len(test)) == (figures["train_queries"], figures["test_queries"])
    assert len(train) > len(test) > 0
    assert sorted(query for query, _, _ in train + test) == sorted(ids(out, "queries"))
    assert sorted(doc for _, doc, _ in train + test) == sorted(ids(out, "corpus"))
    assert all(query == f"q:{doc}" and score == 1 for query, doc, score in train + test)
    assert json.loads((out / "sample.json").read_text()).items() <= figures.items()


def test_query_is_the_first_paragraph_and_document_the_rest(source: Source, tmp_path: Path) -> None:
    build(tmp_path / "sample", source)
    queries = pq.read_table(tmp_path / "sample" / "queries.parquet")
    documents = pq.read_table(tmp_path / "sample" / "corpus.parquet")
    query, document = docstring(3).split("\n\n")
    assert dict(zip(queries["id"].to_pylist(), queries["text"].to_pylist(), strict=True))["q:pack.f3"] == query
    text = dict(zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True))["pack.f3"]
    assert text.split() == document.split()
    assert "pack.inner.more.g77" in ids(tmp_path / "sample", "corpus")


def test_queries_are_nearer_to_their_own_document_than_chance(source: Source, tmp_path: Path) -> None:
    build(tmp_path / "sample", source, dim=256)
    (corpus,) = EmbeddingTable.open(str(tmp_path / "sample" / "corpus")).blocks()
    (queries,) = EmbeddingTable.open(str(tmp_path / "sample" / "queries")).blocks()
    sim_QN = queries.vectors_ND @ corpus.vectors_ND.T
    column = {name: n for n, name in enumerate(corpus.ids.to_pylist())}
    own = [column[name.removeprefix("q:")] for name in queries.ids.to_pylist()]
    rank_Q = (sim_QN > sim_QN[np.arange(len(own)), own][:, None]).sum(1)
    assert np.mean(rank_Q < 10) > 0.5


def test_methods_classes_and_branches_are_read_but_tests_and_broken_files_are_not(tmp_path: Path) -> None:
    nested = f'''
class Outer:
    """{docstring(1)}"""

    def method(self):
        """{docstring(2)}"""

        def closure():
            """{docstring(3)}"""

try:
    import fast
except ImportError:
    async def fallback():
        """{docstring(4)}"""

def one_paragraph():
    """{" ".join(WORDS)}"""

def short():
    """Too few words.

    {" ".join(WORDS)}
    """

def surrogate():
    """\\ud800 {docstring(5)}"""
'''
    source = write_package(
        tmp_path / "pack",
        {
            "mod.py": nested,
            "broken.py": 'def f(:\n    """x"""\n',
            "tests/test_mod.py": function("f", 6),
            "_vendor/other.py": function("f", 7),
        },
    )
    chosen = [pair for _, pair in unique(documented_objects([source]), seed=0)]
    names = {pair.name for pair in chosen}
    assert names == {"pack.mod.Outer", "pack.mod.Outer.method", "pack.mod.fallback", "pack.mod.surrogate"}
    for pair in chosen:
        pair.query.encode()


def test_copies_are_taken_once_and_under_the_shortest_name(source: Source, tmp_path: Path) -> None:
    """A copy differs in case, digits and punctuation, or in its query only, or in its document only."""
    query, document = docstring(0).split("\n\n")
    other_query, other_document = docstring(500).split("\n\n")
    copies = {
        "exact": docstring(0),
        "altered": f"{query.upper()}!!\n\n{document.replace(' ', '  ')} 42",
        "same_query": f"{query}\n\n{other_document}",
        "same_document": f"{other_query}\n\n{document}",
    }
    code = "".join(f'def {name}():\n    """{text}"""\n\n' for name, text in copies.items())
    second = write_package(tmp_path / "sources" / "copies", {"a.py": code, "b.py": code})
    build(tmp_path / "sample", source, second)
    assert len(ids(tmp_path / "sample", "corpus")) == PAIRS
    assert "pack.f0" in ids(tmp_path / "sample", "corpus")


def linked(pairs: list[Pair]) -> list[set[Pair]]:
    """Sets of pairs connected by a shared name, query or document."""
    components: list[set[Pair]] = []
    for pair in pairs:
        near = [c for c in components if any(set(pair[:1] + pair[2:]) & set(other[:1] + other[2:]) for other in c)]
        components = [c for c in components if c not in near] + [{pair}.union(*near)]
    return components


@st.composite
def draw_pairs(draw: st.DrawFn) -> list[Pair]:
    """Pairs of few distinct names, queries and documents, so that long chains of copies are common."""
    kind = st.integers(0, 20)
    queries, documents = ([" ".join([word] * 20) for word in words] for words in (WORDS[:21], WORDS[21:42]))
    raw = draw(st.lists(st.tuples(kind, kind, kind), max_size=20))
    return [Pair(f"pack.f{name}", "pack", queries[query], documents[document]) for name, query, document in raw]


@settings(deadline=None)
@given(draw_pairs(), st.randoms(use_true_random=False))
def test_exactly_one_of_all_linked_copies_is_taken_whatever_the_order(pairs: list[Pair], rng: random.Random) -> None:
    chosen = unique(pairs, seed=0)
    taken = {pair for _, pair in chosen}
    assert len(taken) == len(chosen)
    for component in linked(pairs):
        assert len(taken & component) == 1
    rng.shuffle(pairs)
    assert unique(pairs, seed=0) == chosen


def test_pair_without_a_known_word_is_dropped(source: Source, tmp_path: Path) -> None:
    document = docstring(700).split("\n\n")[1]
    code = f'def f():\n    """Aardvarks burrow quietly beneath dry savannahs.\n\n{document}"""\n'
    (source.root / "odd.py").write_text(code)
    assert build(tmp_path / "sample", source)["pairs"] == PAIRS
    assert "pack.odd.f" not in ids(tmp_path / "sample", "corpus")


def test_same_installation_gives_the_same_bytes(source: Source, tmp_path: Path) -> None:
    first, second = (build(tmp_path / name, source) for name in ("one", "two"))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert first["fingerprint"] == second["fingerprint"]


def test_fingerprint_follows_content_and_settings(source: Source, tmp_path: Path) -> None:
    prints = [build(tmp_path / "first", source)["fingerprint"]]
    prints.append(build(tmp_path / "seed", source, seed=1)["fingerprint"])
    prints.append(build(tmp_path / "dim", source, dim=16)["fingerprint"])
    module = source.root / "inner" / "more.py"
    module.write_text(module.read_text() + function("added", 900))
    prints.append(build(tmp_path / "more", source)["fingerprint"])
    module.write_text(module.read_text().replace("added", "renamed"))
    prints.append(build(tmp_path / "renamed", source)["fingerprint"])
    assert len(set(prints)) == len(prints)


def test_size_takes_a_part_in_which_every_pair_keeps_its_split(source: Source, tmp_path: Path) -> None:
    build(tmp_path / "all", source)
    build(tmp_path / "part", source, size=60)
    build(tmp_path / "other", source, size=60, seed=1)
    assert len(ids(tmp_path / "part", "corpus")) == 60
    assert set(ids(tmp_path / "part", "corpus")) != set(ids(tmp_path / "other", "corpus"))
    for split in ("train", "test"):
        everything = set(judgements(tmp_path / "all", split))
        assert set(judgements(tmp_path / "part", split)) <= everything
        assert set(judgements(tmp_path / "other", split)) <= everything


def test_same_sample_is_kept_and_another_replaced(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "sample"
    assert not build(out, source)["kept"]
    before = content(out)
    assert build(out, source)["kept"]
    assert content(out) == before
    assert not build(out, source, seed=1)["kept"]
    assert content(out) != before
    assert not build(out, source._replace(version="1.1"))["kept"]
    assert [path.name for path in tmp_path.iterdir() if "sample" in path.name] == ["sample"]


def test_empty_folder_is_used(source: Source, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    assert build(tmp_path / "sample", source)["pairs"] == PAIRS


@pytest.mark.parametrize("name", ["notes.txt", "corpus.parquet", "sample.json"])
def test_foreign_folder_is_refused_and_left_alone(source: Source, tmp_path: Path, name: str) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("[]")
    with pytest.raises(InputError, match=r"was not written by `smec sample`; name a new folder"):
        build(out, source)
    assert content(out) == {name: b"[]"}


@pytest.mark.parametrize("name", ["notes.txt", "corpus.parquet", "qrels/test.parquet"])
def test_sample_with_changed_or_added_files_is_refused(source: Source, tmp_path: Path, name: str) -> None:
    out = tmp_path / "sample"
    build(out, source)
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name} was added, changed or removed"):
        build(out, source, seed=1)
    assert (out / name).read_text() == "mine"


def test_a_file_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="was not written by"):
        build(tmp_path / "file", source)


def test_a_place_below_a_file_is_refused_before_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(InputError, match=r"^out: .*/notes/a/b cannot be made, .*/notes is a file; name a new folder"):
        build(tmp_path / "notes/a/b")


def test_too_few_objects_fail_and_leave_nothing(tmp_path: Path) -> None:
    source = write_package(tmp_path / "pack", {"__init__.py": function("f", 0)})
    with pytest.raises(SmecError, match="only 1 documented objects found"):
        build(tmp_path / "sample", source)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_failed_write_leaves_the_earlier_sample_and_nothing_else(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "sample"
    build(out, source)
    before = content(out)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.data.sample.pq.write_table", full)
    with pytest.raises(SmecError, match="No space left on device"):
        build(out, source, seed=1)
    assert content(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_packages_are_found_but_never_imported(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = source.root.parent / "pack-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(source.root.parent)
    monkeypatch.setitem(PACKAGES, "pack", "pack")
    monkeypatch.setitem(PACKAGES, "not_installed_anywhere", "not-installed-anywhere")
    sources = {found.distribution: found for found in installed_sources()}
    assert {"python", "numpy", "torch", "ray", "scikit-learn", "pack"} <= set(sources)
    assert "not-installed-anywhere" not in sources
    assert (sources["python"].root / "json" / "decoder.py").is_file()
    assert sources["pack"] == source
    build(tmp_path / "sample", sources["pack"])
    assert not [name for name in sys.modules if name.split(".")[0] == "pack"]
