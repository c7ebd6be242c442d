"""What the champion reaches on the queries it was promoted by."""

from types import SimpleNamespace
from typing import cast

import numpy as np

from pipelines.ledger import Ledger, Release
from pipelines.retrain_drift import known_queries


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
