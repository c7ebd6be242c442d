"""A scan on a cluster of several nodes (raylets of this machine): each reads its share, and one of them dies."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from smec_core.data.parquet import EmbeddingTable, write_embeddings
from smec_core.data.scan import Keep, scan_table
from tests.conftest import REPOSITORY
from tests.counted import noted_reads

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FILES, ROWS, DIM, SAMPLE = 30, 16_000, 64, 500
SCAN = """
import json, sys
from pathlib import Path
import pytest
from pipelines.data import scan
from smec_core.data import scan as rules
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.scan import Keep
from tests.counted import Counter

rules.SMALL_BYTES = 0
Counter(pytest.MonkeyPatch(), Path(sys.argv[2]))
table = EmbeddingTable.open("counted://" + sys.argv[1])
found = scan.scan(table, Keep(table.rows, int(sys.argv[3])))
print(json.dumps({"check": found.check, "ids": found.id_K.to_pylist(), "moment": found.moment_DD.tolist()}))
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head node for the driver alone, and three nodes of one CPU each."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(FILES):
        x_ND = np.random.default_rng(number).standard_normal((ROWS, DIM), dtype=np.float32)
        write_embeddings(str(folder / f"{number:02d}.parquet"), [f"{number}-{row}" for row in range(ROWS)], x_ND)
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path) -> dict[str, Any]:
    table = EmbeddingTable.open(str(corpus))
    found = scan_table(table, Keep(table.rows, SAMPLE))
    return {"check": found.check, "ids": found.id_K.to_pylist(), "moment": found.moment_DD.tolist()}


def start(cluster: Cluster, corpus: Path, notes: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    command = [sys.executable, "-c", SCAN, str(corpus), str(notes), str(SAMPLE)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def vectors_read(notes: Path, corpus: Path) -> dict[str, float]:
    """Share of the corpus that each raylet's workers have read; footers, ids and Ray's samples are in it."""
    size = sum(path.stat().st_size for path in corpus.iterdir())
    by_node: dict[str, float] = {}
    for read in noted_reads(notes):
        by_node[read.raylet] = by_node.get(read.raylet, 0) + read.size / size
    return by_node


def test_each_node_reads_its_share(cluster: Cluster, corpus: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    scan = start(cluster, corpus, tmp_path)
    printed, _ = scan.communicate(timeout=300)
    assert json.loads(printed) == expected
    shares = vectors_read(tmp_path, corpus)
    print(f"passes by node: {shares}")
    of_nodes = [share for raylet, share in shares.items() if raylet]
    assert len(of_nodes) == 3
    # of some eight read tasks, one at least
    assert min(of_nodes) > 0.1
    assert sum(shares.values()) < 1.5


def test_a_node_that_dies_costs_its_blocks_alone(
    cluster: Cluster, corpus: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    scan = start(cluster, corpus, tmp_path)
    deadline = time.monotonic() + 300
    try:
        while sum(vectors_read(tmp_path, corpus).values()) < 0.5:
            assert scan.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)
        printed, _ = scan.communicate(timeout=300)
    finally:
        scan.kill()
    assert scan.returncode == 0
    # Ray tells of the node before it
    assert json.loads(printed.splitlines()[-1]) == expected
    shares = vectors_read(tmp_path, corpus)
    print(f"passes by node, one of which died: {shares}")
    # from the start again it would be 1.5 and more
    assert 1 < sum(shares.values()) < 1.45
