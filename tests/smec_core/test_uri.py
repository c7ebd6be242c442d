"""How a URI may be shown."""

import pytest

from smec_core.uri import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://me:p/a@ss@host/db", "postgresql://***@host/db"),
        ("http://me:pa'ss@host/x", "http://***@host/x"),
        ("neither 'http://host:80/x' nor 'http://me:p@y'", "neither 'http://host:80/x' nor 'http://***@y'"),
        ("request to https://token@host failed", "request to https://***@host failed"),
        ("postgresql://host/db?user=me&password=hunter2&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("s3://bucket/folder@v2", "s3://bucket/folder@v2"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask(text) == masked
