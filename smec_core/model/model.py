"""The trained model: a folder of safetensors and JSON, and `encode`.

Shapes: N rows, D input dims, d dims asked for, w dims of stored vectors, I dims that a stage takes.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

import smec_core
from smec_core.checksums import SUMS, write_sums
from smec_core.data.seen import SeenDocuments
from smec_core.data.uri import HALF_A_URI
from smec_core.data.vectors import near_one, tensor_of, unit
from smec_core.errors import InputError, one_line
from smec_core.folders import replace_files
from smec_core.model.adapter import FrozenStage, apply_chain, fold
from smec_core.model.card import model_card
from smec_core.model.extension import Base, check_chain, exact_rotation, kept_dim, read_base
from smec_core.model.push import push_model

FORMAT = 2
"""Since format 2 a model folder has checksums."""
SEEN_FILE = "seen.safetensors"
SEALED = ("adapter.safetensors", SEEN_FILE, "config.json", "metrics.json", "history.jsonl", "README.md")


class Model:
    """A nested embedding: every prefix in `dims` of the one output vector is a usable embedding.

    Attributes:
        stages: the trained chain, first stage first.
        input_dim: D, dims of the vectors it takes.
        dims: usable prefixes, D first, descending.
        matrix_DD: the chain folded into one matrix, z = A x; None where a stage is not linear.
        config: what trained it (config.json).
        metrics: what it reached (metrics.json).
        base: the model whose chain this one goes on with, and whose stored vectors `upgrade` takes; None for none.
        seen: the documents that it has learnt from; None where that is not known, as of models of earlier versions, and
            of those that build on one.
    """

    def __init__(
        self,
        stages: Sequence[FrozenStage],
        input_dim: int,
        config: dict[str, Any],
        metrics: dict[str, Any],
        seen: SeenDocuments | None = None,
    ) -> None:
        self.stages = [stage.to("cpu") for stage in stages]
        self.input_dim = input_dim
        # first in the file, and of this version whatever the config says
        self.config = {"format": FORMAT, "input_dim": input_dim} | config | {"format": FORMAT}
        self.config["stages"] = [{"dim": stage.dim, "projection": stage.projection} for stage in stages]
        self.dims: tuple[int, ...] = tuple(self.config["dims"])
        self.metrics = metrics
        self.seen = seen
        self.matrix_DD = fold(self.stages, input_dim)
        self.base = read_base(self.config.get("base"), self.stages, self.dims)
        if self.base is not None:
            self._base_block = kept_dim(self.stages[: self.base.stages], input_dim)
            self._added_II = fold(self.stages[self.base.stages :], self._base_block)

    def __repr__(self) -> str:
        kind = "not linear" if self.matrix_DD is None else "linear"
        extends = "" if self.base is None else f"; extends {self.base.fingerprint[:12]}"
        dims = ", ".join(map(str, self.dims))
        return (
            f"Model({self.input_dim} -> {dims} dims; {len(self.stages)} stages; {kind}{extends}; "
            f"fingerprint {self.fingerprint[:12]})"
        )

    @overload
    def encode(self, x: Tensor, dim: int | None = None) -> Tensor: ...
    @overload
    def encode(self, x: np.ndarray | Sequence[Any], dim: int | None = None) -> np.ndarray: ...
    def encode(self, x: np.ndarray | Sequence[Any] | Tensor, dim: int | None = None) -> np.ndarray | Tensor:
        """Compresses one embedding or several.

        Args:
            x: original embeddings (N, D) or one (D,): numpy, torch or lists of numbers, of any scale. A row of zeros
                stays one, and a row with NaN or infinity gives NaN.
            dim: how many dims to keep, any number up to D; one of `dims` keeps its measured quality. Default: all.

        Returns:
            Unit vectors (N, dim), or one (dim,), float32: torch for torch, else numpy.

        Raises:
            InputError: the input is not such numbers, or `dim` is no whole number or out of range.

        Example:
            >>> small = model.encode(corpus, dim=8)
            >>> small.shape, small.dtype
            ((300, 8), dtype('float32'))
            >>> nearest = (model.encode(queries, dim=8) @ small.T).argmax(1)
        """
        if not isinstance(x, Tensor):
            return self.encode(tensor_of(x, is_wide=True), dim).numpy()
        if x.is_complex():
            raise InputError(f"embeddings are of type {x.dtype}; give real numbers")
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_dim:
            takes = f"({self.input_dim},) or (N, {self.input_dim})"
            raise InputError(f"embeddings have shape {tuple(x.shape)}; this model takes {takes}")
        dim = self.input_dim if dim is None else dim
        # a float slices nothing
        if not isinstance(dim, int | np.integer) or not 1 <= dim <= self.input_dim:
            raise InputError(f"dim is {dim}; this model gives 1 to {self.input_dim}, trained for {self.dims}")
        x_ND = near_one(torch.atleast_2d(x))
        if self.matrix_DD is None:
            z_Nd = apply_chain([stage.to(x.device) for stage in self.stages], unit(x_ND))[:, :dim]
        else:
            z_Nd = x_ND @ self.matrix_DD[:dim].to(x.device).T
        return unit(z_Nd).reshape(*x.shape[:-1], dim)

    @property
    def evaluation(self) -> "smec_core.Evaluation | None":
        """What it has reached when it was trained; None where that was not looked at."""
        report = self.metrics.get("evaluation")
        return None if report is None else smec_core.Evaluation(report)

    def evaluate(
        self,
        corpus: Any,
        queries: Any = None,
        qrels: Any = None,
        *,
        split: str | None = None,
        baselines: bool = True,
        exclude_self: bool = False,
        columns: Mapping[str, str] | None = None,
        by: str | Sequence[str] | None = (),
    ) -> "smec_core.Evaluation":
        """Scores every prefix on judged queries, beside truncation, PCA and the original embeddings.

        Args:
            corpus: documents, or a whole dataset, as `smec_core.fit` takes them.
            queries: queries.
            qrels: judgements; those that are not given by split are of "test".
            split: judgements to score by: "train", "dev", "test" or "held_out". Default: test, else dev, else how many
                of the nearest documents by the original embeddings are so at each prefix, which needs no judgements.
            baselines: whether to score the others, too, which takes one more pass over the corpus.
            exclude_self: never find the document that has the query's own id; always so where it was trained so.
            columns: names of columns that have others.
            by: column of the queries, or several, as "language": the same figures of the queries of each of its values.

        Raises:
            InputError: bad data, with table, row and column, or a split or a column that is not there.

        Example:
            >>> found = model.evaluate(corpus, queries, qrels)
            >>> found.split, found.queries
            ('test', 75)
            >>> print(found)  # doctest: +ELLIPSIS
            ndcg@10 on test, 75 queries...
            >>> bool(found.to_pandas().loc[8, "ndcg@10"] > 0)
            True
        """
        return smec_core.evaluate_model(
            self,
            corpus,
            queries,
            qrels,
            split=split,
            baselines=baselines,
            exclude_self=exclude_self,
            columns=columns,
            by=by,
        )

    @overload
    def upgrade(self, v: Tensor, dim: int | None = None) -> Tensor: ...
    @overload
    def upgrade(self, v: np.ndarray | Sequence[Any], dim: int | None = None) -> np.ndarray: ...
    def upgrade(self, v: np.ndarray | Sequence[Any] | Tensor, dim: int | None = None) -> np.ndarray | Tensor:
        """Brings vectors that the base encoded up to this model, without the original embeddings.

        Args:
            v: what the base's `encode` gave, (N, w) or one (w,); w from the smallest block that the base keeps up to D.
            dim: how many dims to keep, up to w. Default: w.

        Returns:
            What this model's `encode` gives for the same items: unit vectors (N, dim), or one (dim,), float32: torch
            for torch, else numpy.

        Raises:
            InputError: the model extends no other, or w or `dim` is out of range.

        Example:
            >>> stored = model.encode(corpus, dim=8)
            >>> smaller = smec_core.fit(corpus, queries, qrels, dims=4, base=model, progress=False, epochs=1)
            >>> smaller.upgrade(stored, dim=4).shape
            (300, 4)
        """
        if not isinstance(v, Tensor):
            return self.upgrade(tensor_of(v), dim).numpy()
        if self.base is None or self._added_II is None:
            raise InputError("this model extends no other, so it upgrades no vectors; encode the original embeddings")
        block, width = self._base_block, v.shape[-1] if v.ndim else 0
        if v.ndim not in (1, 2) or width > self.input_dim:
            raise InputError(f"vectors have shape {tuple(v.shape)}; upgrade takes (N, {block} to {self.input_dim})")
        if width < block:
            raise InputError(
                f"vectors have {width} dims, but an upgrade needs the first {block} to {self.input_dim} of the model "
                f"{self.base.fingerprint[:12]}; encode the original embeddings"
            )
        dim = width if dim is None else dim
        if not isinstance(dim, int | np.integer) or not 1 <= dim <= width:
            raise InputError(f"dim is {dim}, but the vectors to upgrade have {width} dims; give 1 to {width}")
        v_Nw = torch.atleast_2d(v.float())
        z_Nw = torch.cat([v_Nw[:, :block] @ self._added_II.to(v.device).T, v_Nw[:, block:]], dim=1)
        return F.normalize(z_Nw[:, :dim], dim=1).reshape(*v.shape[:-1], dim)

    def int8_scale(self, dim: int) -> float:
        """What 1 is worth in an int8 vector of `dim` dims.

        Raises:
            InputError: none was learnt for that many dims.
        """
        scales = self.config.get("int8_scales", {})
        if str(dim) not in scales:
            known = ", ".join(scales) or "none, because an earlier version trained it: train again in a new --storage"
            raise InputError(f"dim is {dim}, but for int8 vectors this model has scales for {known}")
        return float(scales[str(dim)])

    def extended(self, added: Sequence[FrozenStage], config: dict[str, Any], metrics: dict[str, Any]) -> "Model":
        """The model that goes on with further stages where this one ends; this one stays as it is.

        The weights of `added` are taken to the nearest rotation, since the rounding of a training in float32 (some
        1e-6 a stage) would show in the cosines of the dims already in service.

        Args:
            added: rotations, the first one of the smallest block that this model keeps.
            config: what trained them, as of a new model; `dims` of both models are joined, and `base` is set.
            metrics: what the extended model reaches.

        Raises:
            InputError: an added stage does not fit or is no rotation, or no stage keeps one of the dims.
        """
        try:
            check_chain(added, kept_dim(self.stages, self.input_dim), first=len(self.stages))
        except ValueError as error:
            raise InputError(f"the model cannot be extended: {error}") from error
        blocks = {self.input_dim, *(stage.dim for stage in (*self.stages, *added))}
        if lost := sorted(set(config["dims"]) - blocks, reverse=True):
            raise InputError(f"dims: no stage keeps {lost[0]} dims; name one of {sorted(blocks, reverse=True)}")
        rotations = [exact_rotation(stage, len(self.stages) + number) for number, stage in enumerate(added)]
        base = Base(self.fingerprint, self.dims, len(self.stages))
        dims = sorted({*self.dims, *config["dims"]}, reverse=True)
        record = {**config, "dims": dims, "base": base._asdict()}
        return Model([*self.stages, *rotations], self.input_dim, record, metrics)

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
        """Writes a model folder: its matrix and stages, config.json, metrics.json, a model card and SHA256SUMS.

        The folder is made if it is missing. A model that is there is replaced as a whole; other files stay. SHA256SUMS
        is as `sha256sum` writes it. seen.safetensors has hashes of the ids of the documents that the model has learnt
        from, where that is known.

        Example:
            >>> model.save("models/products")
            >>> smec_core.load("models/products").dims
            (32, 16, 8)

        Raises:
            InputError: a URI, a folder that cannot be written, or one of something else with files of these names.
        """
        place, names = Path(folder), {*SEALED, SUMS}
        if "://" in str(folder) or HALF_A_URI.match(str(folder)):
            raise InputError(f"folder: {folder} is a URI; save to a folder and copy it there, hf:// by push_to_hub")
        try:
            others = {path.name for path in place.iterdir()} & names if place.exists() else set()
            if others and "adapter.safetensors" not in others:
                raise InputError(f"folder: {folder} holds no model, but {min(others)}; name another")
            replace_files(place, names, self.write)
        except OSError as error:
            raise InputError(f"folder: {folder} cannot be written ({one_line(error)}); name another") from error

    def write(self, folder: Path, history: Path | None = None) -> None:
        """Writes the files of a model folder into a folder that is there and has no model.

        Args:
            folder: where they go.
            history: the records of the training, which become history.jsonl.
        """
        (folder / "adapter.safetensors").write_bytes(self._tensor_bytes())
        if self.seen is not None:
            hashes = torch.from_numpy(self.seen.hash_S.view(np.int64))
            (folder / SEEN_FILE).write_bytes(save({"document_hashes": hashes}))
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n")
        if history is not None:
            shutil.copyfile(history, folder / "history.jsonl")
        (folder / "README.md").write_text(model_card(self.config, self.metrics), encoding="utf-8")
        write_sums(folder, [name for name in SEALED if (folder / name).exists()])

    def push_to_hub(self, repo: str, private: bool = True, message: str = "Upload a SMEC model") -> str:
        """Uploads the model folder to the Hugging Face Hub in one commit, its card as README.md.

        Of the data's place nothing is uploaded. seen.safetensors is: whoever may read the model and has an id can tell
        whether the model has learnt from that document. The token is HF_TOKEN, else that of `hf auth login`; needs
        the extra `sources`.

        Args:
            repo: "USER/NAME"; it is made where there is none.
            private: whether a repository that is made is.
            message: of the commit.

        Returns:
            `hf://USER/NAME@COMMIT`, which `smec_core.load` takes, as without the commit.

        Raises:
            InputError: no such name, or no right to write there.
            StoreUnreachable: the Hub does not answer.
        """
        shown = copy(self)
        data = self.config.get("data", {})
        shown.config = self.config | {"data": {name: data[name] for name in data if name != "uri"}}
        return push_model(shown.write, shown.config, shown.metrics, repo, private, message, SEALED)
