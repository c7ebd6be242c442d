"""What the experiments train: every compared method, and SMEC with its parts added and removed."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from smec_core.config import FAST_PRESET, PAPER_PRESET
from smec_core.errors import InputError
from smec_core.research.peers.adaptor import PUBLISHED, TUNED
from smec_core.research.peers.linear import ClosedPeer, FaissPca, Pca, RandomProjection, Truncation
from smec_core.research.peers.matryoshka_adaptor import MatryoshkaAdaptor
from smec_core.research.peers.peer import FewLabels, Peer, Smec
from smec_core.research.peers.search_adaptor import SearchAdaptor

SMEC, FAISS_PCA = "smec", "faiss-pca"
MRL: dict[str, Any] = {"schedule": "parallel", "init": "pca", "projection": "linear", "favour": "all"}
"""What others train on an adapter: all prefixes at once."""
COMPARED: dict[str, Peer] = {
    "truncation": Truncation(),
    "random-projection": RandomProjection(),
    "pca": Pca(),
    FAISS_PCA: FaissPca(),
    "white": ClosedPeer("white"),
    "within": ClosedPeer("within"),
    "search-adaptor": SearchAdaptor(PUBLISHED),
    "search-adaptor-tuned": SearchAdaptor(TUNED),
    "matryoshka-adaptor": MatryoshkaAdaptor(PUBLISHED),
    "matryoshka-adaptor-tuned": MatryoshkaAdaptor(TUNED),
    "parallel-mrl": Smec(MRL),
    "smec-paper": Smec(PAPER_PRESET),
    "smec-fast": Smec(FAST_PRESET),
    SMEC: Smec({}),
}
"""The methods of `compare`. Those that learn from judgements draw them in the same way, stop on the same dev queries,
and learn again from all labels for as long as that was good for; without a guard, as smec-paper, they learn from all
labels at once; white and within are chosen on folds of all of these, and smec-fast takes the better of them by dev."""

UNLABELLED = ("truncation", "random-projection", "pca", FAISS_PCA)
"""Those that learn from no judgements."""
FEW_COMPARED = ("pca", "within", "matryoshka-adaptor", "parallel-mrl")
FEW_LABELS = (25, 50, 100, 200, 400, 800)
"""What `labels` compares by default, and how many judged queries it takes."""

PARTS: dict[str, dict[str, Any]] = {
    "SMRL": {"schedule": "parallel"},
    "look-ahead": {"lookahead": 0.0},
    "ADS": {"gumbel_noise": 0.0, "ads_lr_factor": 0.0},
    "closed form": {"init": "pca"},
    "polish": {"epochs": 0},
    "temperature": {"temperature": 1.0},
    "guard": {"guard": False, "refit": False, "projection": "linear"},
}
"""The parts of SMEC that are on by default, and the settings that switch each off; polish is all training that follows
the closed form."""
S_XBM: dict[str, dict[str, Any]] = {
    "S-XBM": {"alpha": 0.3},
    "S-XBM as published": {"unsupervised": "cosines", "alpha": 0.1, "alpha_whole": 0.1},
}
"""What switches S-XBM on."""

QUEUE_SIZES = (1000, 2000, 5000, 10_000, 20_000)
NO_MEMORY = "none"


def compared(names: tuple[str, ...] | None) -> dict[str, Peer]:
    """The methods of these names, SMEC always among them; by default all, but faiss-pca only where FAISS is installed.

    Raises:
        InputError: an unknown name, or FAISS is not installed.
    """
    has_faiss = find_spec("faiss") is not None
    if names is None:
        return {name: peer for name, peer in COMPARED.items() if has_faiss or name != FAISS_PCA}
    if FAISS_PCA in names and not has_faiss:
        raise InputError(f"methods: {FAISS_PCA} needs FAISS: pip install faiss-cpu, or leave it out")
    for name in names:
        if name not in COMPARED:
            raise InputError(f"methods: {name} is unknown; known: {', '.join(COMPARED)}")
    if not set(names) - {SMEC}:
        raise InputError(f"methods: name at least one to compare {SMEC} with")
    return {name: peer for name, peer in COMPARED.items() if name in {*names, SMEC}}


def ablation() -> dict[str, Smec]:
    """SMEC with its parts added one by one to plain MRL, and removed one by one; and with S-XBM, off by default."""
    # what takes polish away trains nothing, so it is no step between MRL and SMEC
    added = [part for part in PARTS if part != "polish"]
    methods: dict[str, Smec] = {}
    for count in range(len(added)):
        without = [PARTS[part] for part in added[count:]]
        methods["plain MRL" if not count else f"+ {added[count - 1]}"] = Smec(_merged(without))
    methods[SMEC] = Smec({})
    methods |= {f"without {part}": Smec(changed) for part, changed in PARTS.items()}
    methods |= {f"with {name}": Smec(changed) for name, changed in S_XBM.items()}
    return methods


def few_labels(names: tuple[str, ...] | None, queries: tuple[int, ...], judged: int) -> dict[str, Peer]:
    """Methods that learn from so many judged queries, and from all; those that learn from none come once.

    Args:
        names: of the methods; None for some.
        queries: how many.
        judged: how many there are; as many or more are all.

    Raises:
        InputError: an unknown name, FAISS is not installed, or no number of queries.
    """
    if not queries or min(queries) < 2:
        raise InputError("labels: give numbers of queries, 2 at least: one to learn from, and one to stop by")
    peers = compared(names or FEW_COMPARED)
    unlabelled = {name: peer for name, peer in peers.items() if name in UNLABELLED}
    few: dict[str, Peer] = {
        few_name(name, count): FewLabels(peer, count)
        for count in sorted(set(queries))
        for name, peer in peers.items()
        if count < judged and name not in UNLABELLED
    }
    return unlabelled | few | {few_name(name, None): peer for name, peer in peers.items() if name not in UNLABELLED}


def few_name(method: str, queries: int | None) -> str:
    """How a method is called that learns from so many judged queries; None: from all."""
    return f"{method}, {'all' if queries is None else queries}"


def queue_sizes() -> dict[str, Peer]:
    """SMEC with memories of different sizes, and without one."""
    sizes = {str(size): Smec(S_XBM["S-XBM"] | {"queue_size": size}) for size in QUEUE_SIZES}
    return {NO_MEMORY: Smec({"alpha": 0.0}), **sizes}


def _merged(changes: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {name: value for changed in changes for name, value in changed.items()}
