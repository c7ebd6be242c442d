"""Two runs of the same compression at once: the one that comes late leaves what the other has published alone."""

from pathlib import Path

import numpy as np

from pipelines.compress.actor import CompressPiece, Job, cut
from pipelines.storage.manifest import finished_task
from pipelines.storage.publish import Draft, check_version
from smec_core.data.parquet import EmbeddingTable, write_embeddings
from tests.smec_core.model.test_model import make_model


def test_a_run_that_was_overtaken_replaces_no_file_of_the_published_version(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    x_ND = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    write_embeddings(str(tmp_path / "corpus/part-0.parquet"), [f"d{row}" for row in range(64)], x_ND)
    table, out = EmbeddingTable.open(str(tmp_path / "corpus")), str(tmp_path / "out")
    draft = Draft.open(out, {"job": "test", "model": "m", "model_fingerprint": "0123", "dim": 4})
    # another batch_rows gives other row groups, and so other bytes
    first, late = (
        Job(make_model(), table, draft.filesystem, draft.folder, (4,), "float32", False, None, rows) for rows in (64, 7)
    )
    [piece] = cut(table, 1000)
    begun = CompressPiece(late, gpu=False)(piece._asdict())
    for told in CompressPiece(first, gpu=False)(piece._asdict()):
        assert not told["error"]
    files = finished_task(draft.filesystem, draft.folder, piece.name)
    assert files is not None
    draft.finish(files, {"rows": 64})
    before = check_version(out, draft.name)
    [*_, last] = list(begun)
    assert "another run has published this version meanwhile; run again" in str(last["error"])
    assert check_version(out, draft.name) == before
    assert not list((tmp_path / "out" / draft.name).glob("_done*"))
