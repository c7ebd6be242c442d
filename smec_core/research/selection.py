"""Whether ADS keeps the dims that matter, beside other ways of choosing (paper section 4.4, figure 6).

Shapes: M pairs, D dims.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.model.adapter import FrozenStage, apply_chain
from smec_core.model.pca import principal_rotation
from smec_core.research.peers.peer import score
from smec_core.training.context import TrainingData
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train

MOST_PAIRS = 2000
UNGUARDED = {"init": "identity", "guard": False, "refit": False}
"""Of all trainings here: a guard, where little is gained, would keep the dims as they were, and call them chosen."""


def achievement_rates(data: TrainingData, config: TrainConfig) -> list[dict[str, Any]]:
    """How many of the most important dims each way of choosing keeps, and how good the kept dims are, at every dim.

    Ways to choose among the dims as they come: truncation takes the first, ADS those that a training of selection alone
    keeps, WARE the most important ones. Ways that make new dims, of which the first are taken: PCA, and a matrix that
    MRL has trained. WARE is taken of the dims that each chooses among, over the judged pairs. Both the data and a
    random rotation of it, whose dims come in no order, are looked at.

    Returns:
        A record for each of `as they are` and `rotated`, method, and dim: its achievement `rate`, the `chance` of a
        random choice, and the mean `ndcg@10` of the kept dims on dev.
    """
    assert data.train is not None and data.dev is not None
    judged = data.train
    relevant_J = judged.score_J > 0
    pairs = [
        rows.take(torch.from_numpy(row_M[relevant_J][:MOST_PAIRS]))
        for rows, row_M in ((data.queries, judged.query_row_Q[judged.query_J]), (data.docs, judged.doc_row_J))
    ]
    first_D = torch.arange(data.docs.dim)
    records = []
    for order in ("as they are", "rotated"):
        rotation_DD = torch.eye(data.docs.dim)
        if order == "rotated":
            noise_DD = torch.randn(rotation_DD.shape, generator=torch.Generator().manual_seed(config.seed))
            rotation_DD = torch.linalg.qr(noise_DD)[0]
        turn = FrozenStage(data.docs.dim, "rotation", {"weight": rotation_DD})
        # without dev, so that nothing is trained on it
        turned = replace(data, docs=data.docs.project(turn), queries=data.queries.project(turn), dev=None)
        selection = train(turned, _changed(config, projection="selection"), NullTracker()).stages
        mrl = train(turned, _changed(config, projection="linear", schedule="parallel"), NullTracker()).stages
        pca_DD = principal_rotation(turned.docs, data.node.group)
        sides = [turn.apply(x_MD) for x_MD in pairs]
        chosen: dict[str, tuple[Sequence[FrozenStage], Tensor]] = {
            "truncation": ([], first_D),
            "ADS": ([], apply_chain(selection, first_D.float()[None])[0].long()),
            "WARE": ([], ware(*sides).argsort(descending=True)),
            "PCA": ([FrozenStage(data.docs.dim, "rotation", {"weight": pca_DD})], first_D),
            "MRL": (mrl, first_D),
        }
        for method, (stages, order_D) in chosen.items():
            ware_D = ware(*(apply_chain(stages, x_MD) for x_MD in sides))
            ndcg = score(partial(_kept, stages, order_D), turned, config.dims, data.dev)["ndcg@10"]
            for dim in config.dims:
                rate = achievement_rate(order_D[:dim], ware_D)
                record = {"dims": order, "method": method, "dim": dim, "rate": rate, "chance": dim / data.docs.dim}
                records.append(record | {"ndcg@10": float(ndcg[dim].mean())})
    return records


def _kept(stages: Sequence[FrozenStage], order_D: Tensor, x_ND: Tensor, dim: int) -> Tensor:
    return apply_chain(stages, x_ND)[:, order_D[:dim]]


def _changed(config: TrainConfig, **changed: Any) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | UNGUARDED | changed)


def ware(a_MD: Tensor, b_MD: Tensor) -> Tensor:
    """Weighted average reconstruction error (D) of each dim, over pairs of vectors.

    The mean over pairs of |before - after| / |after|, the cosine of the pair before and after the dim is removed from
    both. A larger value means a more important dim.

    Args:
        a_MD: one side of each pair, any scale.
        b_MD: the other side.
    """
    product_MD = a_MD * b_MD
    square_a_MD, square_b_MD = a_MD.square(), b_MD.square()
    dot_M1 = product_MD.sum(1, keepdim=True)
    norm_a_M1, norm_b_M1 = square_a_MD.sum(1, keepdim=True), square_b_MD.sum(1, keepdim=True)
    before_M1 = dot_M1 / (norm_a_M1 * norm_b_M1).sqrt()
    rest_MD = (norm_a_M1 - square_a_MD).clamp_min(1e-12) * (norm_b_M1 - square_b_MD).clamp_min(1e-12)
    after_MD = (dot_M1 - product_MD) / rest_MD.sqrt()
    return ((before_M1 - after_MD).abs() / after_MD.abs().clamp_min(1e-12)).mean(0)


def achievement_rate(kept: Tensor, ware_D: Tensor) -> float:
    """Share of the most important dims by WARE that a selection keeps (paper figure 6).

    Args:
        kept: the dims that it keeps.
        ware_D: WARE of every dim.
    """
    best = ware_D.topk(len(kept)).indices
    return torch.isin(kept, best).double().mean().item()
