"""What the comparison of two versions of the data sees."""

from pathlib import Path

import numpy as np
import pytest

from smec_core.data.dataset import Dataset
from smec_core.data.parquet import write_embeddings
from smec_core.data.scan import Keep, scan_table
from smec_core.evaluation.drift import SAMPLE, Drift, Reference

DIM, DOCS = 16, 600
BASE = np.random.default_rng(0).standard_normal((DOCS, DIM)).astype(np.float32)


def reference(folder: Path, docs_ND: np.ndarray, first: int = 0) -> Reference:
    folder.mkdir(parents=True)
    ids = [f"d{first + row}" for row in range(len(docs_ND))]
    write_embeddings(str(folder / "corpus.parquet"), ids, docs_ND)
    write_embeddings(str(folder / "queries.parquet"), ["q"], docs_ND[:1])
    dataset = Dataset.open(str(folder))
    docs = scan_table(dataset.corpus, Keep(len(ids), len(ids)), dataset.ids[0].hash_M)
    return Reference.from_bytes(Reference.of(len(ids), docs).to_bytes())


def test_nothing_changed(tmp_path: Path) -> None:
    # another scale is no change: cosines are all that counts
    drift = Drift.between(reference(tmp_path / "a", BASE), reference(tmp_path / "b", 3 * BASE))

    assert (drift.mean_shift, drift.covariance_shift) == pytest.approx((0, 0), abs=1e-6)
    assert (drift.neighbours_kept, drift.same_cosine) == pytest.approx((1, 1))
    assert drift.common == DOCS


def test_moved_documents_show_in_the_mean(tmp_path: Path) -> None:
    unit_ND = BASE / np.linalg.norm(BASE, axis=1, keepdims=True)
    moved_ND = unit_ND + 0.3 * np.eye(DIM, dtype=np.float32)[0]
    drift = Drift.between(reference(tmp_path / "a", BASE), reference(tmp_path / "b", moved_ND))

    after_ND = moved_ND / np.linalg.norm(moved_ND, axis=1, keepdims=True)
    assert drift.mean_shift == pytest.approx(np.linalg.norm(after_ND.mean(0) - unit_ND.mean(0)), abs=1e-5)
    before, after = (np.cov(x_ND.T, bias=True) for x_ND in (unit_ND, after_ND))
    assert drift.covariance_shift == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-3)


def test_another_embedding_model_shows_in_every_document(tmp_path: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0].astype(np.float32)
    drift = Drift.between(reference(tmp_path / "a", BASE), reference(tmp_path / "b", BASE @ turn))

    # a rotation keeps all neighbours, and is none the less another model
    assert drift.neighbours_kept == pytest.approx(1, abs=0.01)
    assert drift.same_cosine is not None and drift.same_cosine < 0.5


def test_edited_documents_lose_their_neighbours_but_the_median_stays(tmp_path: Path) -> None:
    edited_ND = BASE.copy()
    edited_ND[: DOCS // 3] = np.random.default_rng(2).standard_normal((DOCS // 3, DIM))
    drift = Drift.between(reference(tmp_path / "a", BASE), reference(tmp_path / "b", edited_ND))

    assert drift.same_cosine == pytest.approx(1)
    assert drift.neighbours_kept is not None and 0.2 < drift.neighbours_kept < 0.8


def test_other_documents_cannot_be_compared_one_by_one(tmp_path: Path) -> None:
    drift = Drift.between(reference(tmp_path / "a", BASE), reference(tmp_path / "b", BASE, first=DOCS))
    assert (drift.common, drift.neighbours_kept, drift.same_cosine) == (0, None, None)


def test_the_sample_of_a_grown_corpus_is_mostly_the_same(tmp_path: Path) -> None:
    many_ND = np.random.default_rng(3).standard_normal((4 * SAMPLE, 4)).astype(np.float32)
    before = reference(tmp_path / "a", many_ND[: 3 * SAMPLE])
    after = reference(tmp_path / "b", many_ND)

    assert 0.9 * SAMPLE < len(after.ids) < 1.1 * SAMPLE
    assert Drift.between(before, after).common > 0.6 * SAMPLE
