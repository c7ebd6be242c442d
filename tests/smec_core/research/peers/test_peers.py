"""Every compared method, fitted on data whose relevance can be learnt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.errors import SmecError
from smec_core.evaluation.metrics import MEASURES
from smec_core.research.peers.adaptor import Recipe
from smec_core.research.peers.linear import FaissPca, Pca, RandomProjection, Truncation
from smec_core.research.peers.matryoshka_adaptor import MatryoshkaAdaptor
from smec_core.research.peers.peer import FewLabels, Fitted, Peer, Smec, score
from smec_core.research.peers.search_adaptor import SearchAdaptor
from smec_core.training.context import TrainingData
from smec_core.training.scanned import load_training_data
from tests.smec_core.generated import Generated, generate, ndcg_of, resident

CONFIG = TrainConfig.model_validate(
    {"dims": "8,4", "batch_size": 32, "negatives": 32, "queue_size": 200, "epochs": 20, "hidden_dim": 32, "lr": 0.01}
)
RECIPE = Recipe(temperature=0.07, steps=300, patience=150, lr=0.01)
PEERS: dict[str, Callable[[], Peer]] = {
    "truncation": Truncation,
    "random-projection": RandomProjection,
    "pca": Pca,
    "faiss-pca": FaissPca,
    "search-adaptor": lambda: SearchAdaptor(RECIPE),
    "matryoshka-adaptor": lambda: MatryoshkaAdaptor(RECIPE),
    "parallel-mrl": lambda: Smec({"schedule": "parallel"}),
    "smec": lambda: Smec({}),
}
TRAINED = ("search-adaptor", "matryoshka-adaptor", "parallel-mrl", "smec")


@pytest.fixture(scope="module")
def data() -> Generated:
    # relevance is in 6 directions that are neither dims of their own nor those of the largest variance
    return generate(torch.arange(6), dim=24, docs=300, queries=400, noise_scale=1.0, mixed=True)


@pytest.mark.training
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_every_dim_and_the_same_bytes_again(name: str, data: Generated) -> None:
    first, again = (PEERS[name]().fit(data.training_data(), CONFIG) for _ in range(2))
    for dim in (24, 8, 4):
        z_Nd = first.encode(data.docs_ND, dim)
        assert z_Nd.shape == (300, dim)
        assert z_Nd.isfinite().all()
        assert torch.equal(z_Nd, again.encode(data.docs_ND, dim))
    assert (first.steps > 0) == (name in TRAINED)
    assert (first.parameters > 0) == (name not in ("truncation", "random-projection"))


@pytest.mark.training
@pytest.mark.parametrize("name", TRAINED)
def test_what_learns_from_judgements_beats_pca_on_test(name: str, data: Generated) -> None:
    found, pca = (
        score(peer.fit(data.training_data(), CONFIG).encode, data.training_data(), (24, 8, 4), data.test)
        for peer in (PEERS[name](), Pca())
    )
    assert set(found) == set(MEASURES)
    for dim in (8, 4):
        assert found["ndcg@10"][dim].mean() > pca["ndcg@10"][dim].mean() + 0.05


def test_scores_are_those_of_a_plain_search(data: Generated) -> None:
    values = score(Truncation().fit(data.training_data(), CONFIG).encode, data.training_data(), (24, 4), data.test)
    expected = ndcg_of(data.docs_ND, data.queries_QD, data.test, [24, 4])
    assert {dim: value_Q.mean() for dim, value_Q in values["ndcg@10"].items()} == pytest.approx(expected)


def test_pca_agrees_with_faiss(data: Generated) -> None:
    ours, theirs = (peer.fit(data.training_data(), CONFIG).encode for peer in (Pca(), FaissPca()))
    for dim in (24, 8, 4):
        sim_NN, faiss_NN = (z @ z.T for z in (F.normalize(f(data.docs_ND, dim), dim=1) for f in (ours, theirs)))
        np.testing.assert_allclose(sim_NN, faiss_NN, atol=1e-4)


def test_pca_agrees_with_faiss_on_scifact(data_dir: Callable[[str], Path]) -> None:
    config = TrainConfig.model_validate({"dims": "384,96,24"})
    data = load_training_data(Dataset.open(str(data_dir("scifact"))), config)
    ours, theirs = (peer.fit(data, config).encode for peer in (Pca(), FaissPca()))
    x_ND = data.docs.take(torch.arange(1000))
    for dim in config.dims:
        sim_NN, faiss_NN = (z @ z.T for z in (F.normalize(f(x_ND, dim), dim=1) for f in (ours, theirs)))
        np.testing.assert_allclose(sim_NN, faiss_NN, atol=1e-4)


def test_random_projection_keeps_all_cosines_at_full_width(data: Generated) -> None:
    encode = RandomProjection().fit(data.training_data(), CONFIG).encode
    z_ND = F.normalize(encode(data.docs_ND, 24), dim=1)
    torch.testing.assert_close(z_ND @ z_ND.T, data.docs_ND @ data.docs_ND.T, atol=1e-5, rtol=0)


def test_an_adaptor_whose_judgements_teach_nothing_stays_what_it_was(data: Generated) -> None:
    # what is dev is the best there is already, and the judgements to learn from are wrong
    wrong = Judgements.from_pairs(data.train.query_J, np.roll(data.train.doc_row_J, 1), data.train.score_J)
    dev = Judgements.from_pairs(np.arange(100), np.arange(100), np.ones(100))
    copies = replace(data.training_data(), queries=resident(data.docs_ND), train=wrong, dev=dev)
    config = CONFIG.model_copy(update={"dims": (16,)})
    encode = MatryoshkaAdaptor(RECIPE).fit(copies, config).encode
    torch.testing.assert_close(encode(data.docs_ND, 16), data.docs_ND[:, :16])


@pytest.mark.training
@pytest.mark.parametrize("adaptor", [MatryoshkaAdaptor, SearchAdaptor])
def test_an_adaptor_that_holds_on_stays_nearer_to_the_original(
    adaptor: Callable[[Recipe], Peer], data: Generated
) -> None:
    moved = []
    for hold in (0.0, 100.0):
        encode = adaptor(replace(RECIPE, hold=hold)).fit(data.training_data(), CONFIG).encode
        moved.append((encode(data.docs_ND, 8) - data.docs_ND[:, :8]).norm(dim=1).mean().item())
    free, held = moved
    assert held < free / 2


def test_adaptors_need_judgements(data: Generated) -> None:
    with pytest.raises(SmecError, match="the adaptors learn from judgements"):
        SearchAdaptor(RECIPE).fit(data.training_data(judged=False), CONFIG)


@pytest.mark.parametrize(("queries", "train", "dev"), [(10, 8, 2), (100, 80, 20), (10_000, 240, 60)])
def test_few_labels_are_a_seeded_choice_of_train_and_dev(queries: int, train: int, dev: int, data: Generated) -> None:
    taken: list[TrainingData] = []

    class Noted(Pca):
        def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
            taken.append(data)
            return super().fit(data, config)

    for seed in (0, 0, 1):
        FewLabels(Noted(), queries).fit(data.training_data(), CONFIG.model_copy(update={"seed": seed}))
    assert [(len(one.train or ()), len(one.dev or ())) for one in taken] == [(train, dev)] * 3
    first, again, other = (one.train.query_row_Q.tolist() for one in taken if one.train is not None)
    assert first == again
    assert (first != other) == (queries < 10_000)
