"""The trained model: a folder of safetensors and JSON, and `encode`.

Shapes: N rows, D input dims, d dims asked for.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from smec_core.adapter import MLP_TENSORS, FrozenStage, apply_chain, fold
from smec_core.card import model_card
from smec_core.config import Projection
from smec_core.errors import InputError

FORMAT = 1


class Model:
    """A nested embedding: every prefix in `dims` of the one output vector is a usable embedding.

    Attributes:
        stages: the trained chain, first stage first.
        input_dim: D, dims of the vectors it takes.
        dims: usable prefixes, D first, descending.
        matrix_DD: the chain folded into one matrix, z = A x; None where a stage is not linear.
        config: what trained it (config.json).
        metrics: what it reached (metrics.json).
    """

    def __init__(
        self, stages: Sequence[FrozenStage], input_dim: int, config: dict[str, Any], metrics: dict[str, Any]
    ) -> None:
        self.stages = [stage.to("cpu") for stage in stages]
        self.input_dim = input_dim
        self.config = {"format": FORMAT, "input_dim": input_dim, **config}
        self.config["stages"] = [{"dim": stage.dim, "projection": stage.projection} for stage in stages]
        self.dims: tuple[int, ...] = tuple(self.config["dims"])
        self.metrics = metrics
        self.matrix_DD = fold(self.stages, input_dim)

    @overload
    def encode(self, x_ND: np.ndarray, dim: int | None = None) -> np.ndarray: ...
    @overload
    def encode(self, x_ND: Tensor, dim: int | None = None) -> Tensor: ...
    def encode(self, x_ND: np.ndarray | Tensor, dim: int | None = None) -> np.ndarray | Tensor:
        """Compresses embeddings.

        Args:
            x_ND: original embeddings, (N, D), any scale.
            dim: how many dims to keep, any number up to D; one of `dims` keeps its measured quality. Default: all.

        Returns:
            Unit vectors (N, dim), float32, numpy or torch as given.

        Raises:
            InputError: the input is not (N, D), or `dim` is out of range.

        Example:
            >>> smec_core.load("model").encode(vectors, dim=96)
        """
        if isinstance(x_ND, np.ndarray):
            return self.encode(torch.from_numpy(np.require(x_ND, np.float32, ["C", "W"])), dim).numpy()
        if x_ND.ndim != 2 or x_ND.shape[1] != self.input_dim:
            raise InputError(f"embeddings have shape {tuple(x_ND.shape)}; this model takes (N, {self.input_dim})")
        dim = self.input_dim if dim is None else dim
        if not 1 <= dim <= self.input_dim:
            raise InputError(f"dim is {dim}; this model gives 1 to {self.input_dim}, trained for {self.dims}")
        x_ND = F.normalize(x_ND.float(), dim=1)
        if self.matrix_DD is None:
            z_Nd = apply_chain([stage.to(x_ND.device) for stage in self.stages], x_ND)[:, :dim]
        else:
            z_Nd = x_ND @ self.matrix_DD[:dim].to(x_ND.device).T
        return F.normalize(z_Nd, dim=1)

    def _tensor_bytes(self) -> bytes:
        tensors = {
            f"stages.{number}.{name}": tensor.contiguous()
            for number, stage in enumerate(self.stages)
            for name, tensor in stage.tensors.items()
        }
        if self.matrix_DD is not None:
            tensors["matrix"] = self.matrix_DD.contiguous()
        return save(tensors)

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of adapter.safetensors."""
        return hashlib.sha256(self._tensor_bytes()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes adapter.safetensors, config.json, metrics.json and README.md into a folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter.safetensors").write_bytes(self._tensor_bytes())
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(self.config, self.metrics))


def load(folder: str | Path) -> Model:
    """Reads a model folder.

    Raises:
        InputError: not a model folder, or one whose files do not fit together.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        tensors = load_file(folder / "adapter.safetensors")
    except FileNotFoundError as error:
        missing = Path(error.filename or "adapter.safetensors").name
        raise InputError(f"{folder}: not a model folder ({missing} is missing)") from error
    except (ValueError, OSError, SafetensorError) as error:
        raise InputError(f"{folder}: a damaged model folder ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{folder}/config.json: not a config of format {FORMAT}, which is what this version reads")
    try:
        stages = [
            _read_stage(number, stage["dim"], stage["projection"], tensors)
            for number, stage in enumerate(config["stages"])
        ]
        width = config["input_dim"]
        for number, stage in enumerate(stages):
            if stage.d_in != width:
                raise ValueError(f"stage {number} takes {stage.d_in} dims, the one before gives {width}")
            width = stage.dim
        return Model(stages, config["input_dim"], config, metrics)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{folder}: config.json and adapter.safetensors do not fit together ({problem})") from error


def _read_stage(number: int, dim: int, projection: Projection, tensors: dict[str, Tensor]) -> FrozenStage:
    if projection not in get_args(Projection):
        raise ValueError(f"stage {number} has the unknown projection {projection!r}")
    prefix = f"stages.{number}."
    names = ["weight", "logits", *(MLP_TENSORS if projection == "residual_mlp" else ())]
    stage = FrozenStage(dim, projection, {name: tensors[prefix + name] for name in names})
    if stage.tensors["weight"].shape != (stage.d_in, stage.d_in) or not 1 <= dim <= stage.d_in:
        raise ValueError(f"stage {number} keeps {dim} dims of a weight {tuple(stage.tensors['weight'].shape)}")
    return stage
