"""Whether ADS keeps the dims that matter, beside other ways of choosing (paper section 4.4, figure 6).

Shapes: M pairs, D dims.
"""

from dataclasses import replace
from typing import Any

import torch

from smec_core.adapter import FrozenStage, apply_chain
from smec_core.config import TrainConfig
from smec_core.importance import achievement_rate, ware
from smec_core.pca import principal_rotation
from smec_core.tracker import NullTracker
from smec_core.train import TrainingData, train

MOST_PAIRS = 2000


def achievement_rates(data: TrainingData, config: TrainConfig) -> list[dict[str, Any]]:
    """How many of the most important dims each way of choosing keeps, at every dim.

    Ways to choose among the dims as they come: truncation takes the first, ADS those that a training of selection alone
    keeps. Ways that make new dims, of which the first are taken: PCA, and a matrix that MRL has trained. WARE is taken
    of the dims that each chooses among, over the judged pairs. Both the data and a random rotation of it, whose dims
    come in no order, are looked at.

    Returns:
        A record for each of `as they are` and `rotated`, method, and dim: its achievement `rate`, and the `chance` of a
        random choice.
    """
    assert data.train is not None
    judged = data.train
    relevant_J = judged.score_J > 0
    pairs = [
        rows.take(torch.from_numpy(row_M[relevant_J][:MOST_PAIRS]))
        for rows, row_M in ((data.queries, judged.query_row_Q[judged.query_J]), (data.docs, judged.doc_row_J))
    ]
    records = []
    for order in ("as they are", "rotated"):
        rotation_DD = torch.eye(data.docs.dim)
        if order == "rotated":
            noise_DD = torch.randn(rotation_DD.shape, generator=torch.Generator().manual_seed(config.seed))
            rotation_DD = torch.linalg.qr(noise_DD)[0]
        turn = FrozenStage(data.docs.dim, "rotation", {"weight": rotation_DD})
        turned = replace(data, docs=data.docs.through(turn), queries=data.queries.through(turn))
        of_dims = [x_MD @ rotation_DD.T for x_MD in pairs]
        selection = train(turned, _changed(config, projection="selection"), NullTracker()).stages
        mrl = train(turned, _changed(config, projection="free", schedule="parallel"), NullTracker())
        selected = apply_chain(selection, torch.arange(data.docs.dim).float()[None])[0].long()
        pca_DD = principal_rotation(turned.docs, data.node.group)
        chosen = {
            "truncation": (of_dims, torch.arange(data.docs.dim)),
            "ADS": (of_dims, selected),
            "PCA": ([x_MD @ pca_DD.T for x_MD in of_dims], torch.arange(data.docs.dim)),
            "MRL": ([apply_chain(mrl.stages, x_MD) for x_MD in of_dims], torch.arange(data.docs.dim)),
        }
        for method, (sides, order_D) in chosen.items():
            ware_D = ware(*sides)
            for dim in config.dims:
                rate = achievement_rate(order_D[:dim], ware_D)
                records.append(
                    {"dims": order, "method": method, "dim": dim, "rate": rate, "chance": dim / data.docs.dim}
                )
    return records


def _changed(config: TrainConfig, **changed: Any) -> TrainConfig:
    # without a guard, which where little is gained would keep the dims as they were, and call them chosen
    shared = {"init": "identity", "guard": False, "refit": False}
    return TrainConfig.model_validate(config.model_dump() | shared | changed)
