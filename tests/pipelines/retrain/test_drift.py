"""What the champion reaches on the queries it was promoted by, and which encoder made the data."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from pipelines.retrain.drift import encoder_of, known_queries
from pipelines.retrain.ledger import Ledger, Release


def test_means_are_over_the_dims_in_the_order_of_the_scores() -> None:
    # of such figures the sum in any other order is another one
    values = [sign * 10.0**power for power in range(16, 0, -1) for sign in (1, -3)]
    now = {"q": {str(dim): value for dim, value in enumerate(values)}}
    then = {"q": dict(reversed(now["q"].items()))}
    ledger = cast(Ledger, SimpleNamespace(reference=lambda number: (None, then)))
    champion = cast(Release, SimpleNamespace(trained_in=1))
    found = known_queries(ledger, champion, now)
    assert found is not None
    assert found["now"] == found["then"] == float(np.mean(values))


@pytest.mark.parametrize("manifest", ["_manifest.json", "manifest.json"])
def test_the_encoder_of_an_ingested_dataset_is_known(tmp_path: Path, manifest: str) -> None:
    assert encoder_of(str(tmp_path)) is None
    (tmp_path / manifest).write_text(json.dumps({"encoder_fingerprint": "0123"}))
    assert encoder_of(f"{tmp_path}/") == "0123"
