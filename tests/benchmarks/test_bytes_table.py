"""The page of bytes against quality, from the command to its files."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.bytes_table import main
from smec_core.data.dataset import Dataset
from smec_core.evaluation.evaluate import evaluate
from smec_core.model.model import Model
from smec_core.model.quantize import learn_int8_scales
from tests.builders import all_vectors, write_dataset


def test_the_page_holds_every_way_at_every_size(tmp_path: Path) -> None:
    dataset = Dataset.open(str(write_dataset(tmp_path / "data", docs=300, queries=120, dim=96)))
    model = Model([], 96, {"dims": [96, 24]}, {})
    model.config["int8_scales"] = learn_int8_scales(model, all_vectors(dataset.corpus))
    model.save(tmp_path / "model")
    main(["--data", dataset.uri, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "page")])

    scores = pd.read_csv(tmp_path / "page" / "scores.csv")
    rescored, coded = "binary, rescored by int8", "product quantisation"
    held = {
        ("float32", 96, 384),
        ("float16", 96, 192),
        ("int8", 96, 96),
        (rescored, 96, 12 + 96),
        ("binary", 96, 12),
        (coded, 96, 16),
        (coded, 96, 32),
        ("RaBitQ", 96, 12 + 8),
    }
    of_24 = {("float32", 24, 96), ("float16", 24, 48), (rescored, 24, 3 + 24), ("int8", 24, 24), ("RaBitQ", 24, 3 + 8)}
    found = {(row.way, row.dims, row.bytes) for row in scores.itertuples()}
    assert found == held | {(f"originals, {way}", dim, size) for way, dim, size in held} | of_24
    expected = evaluate(dataset, model, "test")["ndcg@10"]
    plain = scores[scores["way"] == "float32"].set_index("dims")["ndcg@10"]
    assert plain.to_dict() == pytest.approx({int(dim): value for dim, value in expected.items()}, abs=1e-5)
    for _, same_size in scores.groupby("bytes"):
        assert list(same_size["best"]) == [True] + [False] * (len(same_size) - 1)
        assert same_size["ndcg@10"].is_monotonic_decreasing

    page = (tmp_path / "page" / "README.md").read_text()
    assert "python -m benchmarks.bytes_table --data data --model MODEL" in page
    assert model.fingerprint[:12] in page
    assert str(tmp_path) not in page
    assert "![bytes](bytes.png)" in page
    assert (tmp_path / "page" / "bytes.png").read_bytes().startswith(b"\x89PNG")
    budgets = pd.read_csv(tmp_path / "page" / "budgets.csv").set_index("bytes")
    # the model is the original vectors, so that what fits of its 96 dims is the same
    assert budgets.loc[16, "originals"] in {"binary, 96 dims, 12 bytes", "product quantisation, 96 dims, 16 bytes"}
    assert list(pd.read_csv(tmp_path / "page" / "bytes.csv")["bytes a vector"]) == list(scores["bytes"])


def test_a_model_without_scales_is_refused_with_one_line(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", docs=60, queries=60, dim=16)
    Model([], 16, {"dims": [16]}, {}).save(tmp_path / "model")
    with pytest.raises(SystemExit, match="bytes_table: dim is 16, but for int8 vectors"):
        main(["--data", str(tmp_path / "data"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()
