"""Real process groups: any number of workers compute what one computes.

Every part below runs in this process, as a group of one, and on 2 and 3 ranks of one set of spawned processes.
"""

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from smec_core.adapter import fold
from smec_core.config import TrainConfig
from smec_core.group import Group
from smec_core.metrics import PrefixSearch
from smec_core.pca import principal_rotation
from smec_core.train import train
from tests.smec_core.generated import Generated, Records, generate, resident

DIM = 24
RANKS = (2, 3)
TIMEOUT = datetime.timedelta(seconds=120)
Result = dict[str, Any]
Part = Callable[[], Result]


def small_data(docs: int = 200) -> Generated:
    return generate(torch.arange(8), DIM, docs, queries=400, noise_scale=1.0, mixed=True)


def take_rows() -> Result:
    x_ND = small_data(docs=23).docs_ND
    row_N = torch.tensor([22, 0, 7, 7, 11, 15, 1])
    rows = resident(x_ND)
    return {"taken": rows.take(row_N), "none": rows.take(row_N[:0])}


def search() -> Result:
    data = small_data()
    few = {f"few@{dim}": rows for dim, rows in _search(data.queries_QD[:9], data.docs_ND[:7], 10).items()}
    return few | {f"many@{dim}": rows for dim, rows in _search(data.queries_QD[:50], data.docs_ND, 10).items()}


def _search(q_QD: Tensor, d_ND: Tensor, k: int) -> dict[int, Tensor]:
    own = resident(d_ND)
    searching = PrefixSearch(q_QD, [3, 24], k)
    searching.add(torch.arange(own.start, own.start + len(own.local_LD)), own.local_LD)
    return searching.results(Group())


def principal_directions() -> Result:
    return {"rotation": principal_rotation(resident(small_data().docs_ND).local_LD, Group())}


def train_labelled() -> Result:
    # 300 queries: the last step of an epoch has one, and so no query for most ranks
    return _train(small_data(), judged=True, projection="free", guard=False, epochs=1, batch_size=23, negatives=40)


def train_guarded() -> Result:
    return _train(small_data(), judged=True, epochs=2, batch_size=64, negatives=40)


def train_unlabelled_with_a_short_last_step() -> Result:
    # 40 documents a step: the last step of every epoch has one, and so no document for most ranks
    return _train(
        small_data(docs=41), judged=False, projection="free", guard=False, epochs=2, batch_size=32, negatives=8, top_k=5
    )


def _train(data: Generated, judged: bool, **settings: Any) -> Result:
    records = Records()
    config = TrainConfig(dims=(8,), queue_size=100, **settings)
    trained = train(data.training_data(judged), config, records)
    return {
        "losses": [record["loss"] for record in records.steps],
        "dev": trained.metrics["dev"],
        "choices": [(stage["projection"], stage["epochs"]) for stage in trained.metrics["stages"]],
        "workers": trained.metrics["training"]["workers"],
        "matrix": fold(trained.stages, DIM),
    }


# what may fail in a way that ends the processes comes last
PARTS: tuple[Part, ...] = (
    take_rows,
    search,
    principal_directions,
    train_labelled,
    train_guarded,
    train_unlabelled_with_a_short_last_step,
)


def _work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    for part in PARTS:
        for ranks in RANKS:
            if rank < ranks:
                init = f"file://{folder}/store-{part.__name__}-{ranks}"
                dist.init_process_group("gloo", init_method=init, rank=rank, world_size=ranks, timeout=TIMEOUT)
                result = {key: v.tolist() if isinstance(v, Tensor) else v for key, v in part().items()}
                dist.destroy_process_group()
                (Path(folder) / f"{part.__name__}-{ranks}-{rank}.json").write_text(json.dumps(result))


def run_distributed(folder: Path) -> str:
    """Runs every part on real gloo groups; every rank leaves its results in the folder. Gives the error, if any."""
    try:
        spawn(_work, args=(str(folder),), nprocs=max(RANKS))
    except Exception as error:
        return str(error)
    return ""


class Results:
    """Results of the parts by number of ranks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._error = run_distributed(folder)
        self._single: dict[str, Result] = {}

    def single(self, part: Part) -> Result:
        """What one process, without a process group, gets."""
        if part.__name__ not in self._single:
            self._single[part.__name__] = part()
        return self._single[part.__name__]

    def of(self, part: Part, ranks: int) -> list[Result]:
        """What each rank of a group gets."""
        paths = [self._folder / f"{part.__name__}-{ranks}-{rank}.json" for rank in range(ranks)]
        missing = [path.name for path in paths if not path.exists()]
        assert not missing, f"no result from {missing}: {self._error[-1500:]}"
        return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("part", [take_rows, search], ids=lambda part: part.__name__)
def test_every_rank_gets_what_one_process_gets(results: Results, part: Part, ranks: int) -> None:
    expected = {key: value.tolist() for key, value in results.single(part).items()}
    assert results.of(part, ranks) == [expected] * ranks


@pytest.mark.parametrize("ranks", RANKS)
def test_principal_directions_are_those_of_all_rows(results: Results, ranks: int) -> None:
    expected = results.single(principal_directions)["rotation"]
    found = results.of(principal_directions, ranks)
    assert found == [found[0]] * ranks
    torch.testing.assert_close(torch.tensor(found[0]["rotation"]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    "part", [train_labelled, train_guarded, train_unlabelled_with_a_short_last_step], ids=lambda part: part.__name__
)
def test_training_computes_what_one_process_computes(results: Results, part: Part, ranks: int) -> None:
    alone, together = results.single(part), results.of(part, ranks)
    first, *others = together
    assert first["workers"] == ranks
    assert len(first["losses"]) == len(alone["losses"])
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert first["choices"] == [list(choice) for choice in alone["choices"]]
    torch.testing.assert_close(torch.tensor(first["matrix"]), alone["matrix"], atol=1e-4, rtol=0)
    for other in others:
        assert other["matrix"] == first["matrix"], "the ranks hold different models"
        assert other["dev"] == first["dev"]
