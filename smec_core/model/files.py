"""Reads model folders: every byte is compared with the folder's SHA256SUMS before anything is made of it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from pyarrow.fs import FileType
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from smec_core.checksums import SUMS, check_content, read_sums
from smec_core.config import Projection
from smec_core.data.seen import SeenDocuments
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import DamagedError, InputError, StoreError, StoreUnreachable, one_line
from smec_core.model.adapter import MLP_TENSORS, FrozenStage
from smec_core.model.extension import check_chain
from smec_core.model.model import FORMAT, SEEN_FILE, Model

READ = ("config.json", "metrics.json", "adapter.safetensors")
LATER = (SUMS, SEEN_FILE)
"""What models of earlier versions lack."""
PICKLES = (b"\x80", b"PK\x03\x04")
"""How files of pickle and torch.save begin. A safetensors file may begin so, too: with the length of its header."""
FOLD_TOLERANCE = 1e-3
"""Largest difference of a matrix from the product of its stages, which another machine rounds differently."""
ANEW = "copy the model folder anew, or train again"


def load(folder: str | Path) -> Model:
    """Reads a model folder.

    Args:
        folder: a path or URI (`s3://`, ...), or `hf://USER/NAME[@REVISION]` of the Hugging Face Hub.

    Raises:
        InputError: not a model folder, one whose files do not fit together, or (DamagedError) one that was altered.

    Example:
        >>> model.save("model")
        >>> load("model").encode(queries, dim=8).shape
        (100, 8)
    """
    filesystem, path = open_filesystem(str(folder))
    folder = public_uri(str(folder))
    content: dict[str, bytes] = {}
    for name in (*READ, *LATER):
        try:
            with filesystem.open_input_stream(f"{path.rstrip('/')}/{name}", compression=None) as stream:
                content[name] = stream.read()
        except FileNotFoundError as error:
            if name not in LATER:
                is_there = content or filesystem.get_file_info(path).type != FileType.NotFound
                cause = f"{name} is missing" if is_there else "nothing is there"
                raise InputError(f"{folder}: not a model folder ({cause})") from error
        except (StoreError, StoreUnreachable):
            raise
        except OSError as error:
            if filesystem.get_file_info(path).type == FileType.File:
                raise InputError(f"{folder}: not a model folder (it is a file); give the folder") from error
            raise InputError(f"{folder}: cannot be read ({one_line(error)})") from error
    if content["adapter.safetensors"].startswith(PICKLES) and content["adapter.safetensors"][8:9] != b"{":
        # the header is JSON, so a cut safetensors file has its brace after the eight bytes of the length
        raise InputError(
            f"{folder}/adapter.safetensors: is a pickle, which runs code when it is read; only safetensors is read here"
        )
    try:
        if SUMS in content:
            sums = read_sums(content[SUMS], f"{folder}/{SUMS}")
            for name in (*READ, SEEN_FILE):
                if name in content:
                    check_content(content[name], sums, f"{folder}/{name}")
                elif name in sums:
                    raise DamagedError(f"{folder}/{name}", "is missing")
        return _model(folder, content)
    except DamagedError as error:
        raise DamagedError(error.path, error.problem, ANEW) from error


def _model(folder: str, content: Mapping[str, bytes]) -> Model:
    try:
        config, metrics = (json.loads(todays_names(content[name])) for name in ("config.json", "metrics.json"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(folder, f"is a damaged model folder ({error})") from error
    adapter = f"{folder}/adapter.safetensors"
    try:
        tensors = load_tensors(content["adapter.safetensors"])
    except (ValueError, SafetensorError) as error:
        raise DamagedError(adapter, f"is damaged ({error})") from error
    if not isinstance(config, dict) or config.get("format") not in (1, FORMAT):
        raise InputError(
            f"{folder}/config.json: not a config of format 1 to {FORMAT}, which is what this version reads"
        )
    if config["format"] > 1 and SUMS not in content:
        raise DamagedError(f"{folder}/{SUMS}", "is missing")
    for name, tensor in tensors.items():
        # the comparison is false for NaN, too
        if not (tensor.abs() < torch.inf).all() or (name.endswith(("matrix", "weight")) and not tensor.any()):
            raise DamagedError(adapter, f"{name} holds NaN or infinity, or nothing but zeros")
    seen = _seen(folder, content)
    try:
        stages = [
            _read_stage(number, stage["dim"], stage["projection"], tensors)
            for number, stage in enumerate(config["stages"])
        ]
        input_dim = config["input_dim"]
        check_chain(stages, input_dim)
        # before anything of that size is made
        if all(stage.is_linear for stage in stages) and tensors["matrix"].shape != (input_dim, input_dim):
            raise ValueError(f"matrix is {tuple(tensors['matrix'].shape)}, input_dim {input_dim}")
        model = Model(stages, input_dim, config, metrics, seen)
        if model.matrix_DD is not None:
            if (tensors["matrix"] - model.matrix_DD).abs().max() > FOLD_TOLERANCE * tensors["matrix"].abs().max():
                raise ValueError("matrix is not the product of the stages")
            # folded on another machine its last bits can differ, and with them the fingerprint
            # in memory of torch's own: how a product is rounded depends on where its operands lie
            model.matrix_DD = tensors["matrix"].clone()
        return model
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{folder}: config.json and adapter.safetensors do not fit together ({problem})") from error


def _seen(folder: str, content: Mapping[str, bytes]) -> SeenDocuments | None:
    if SEEN_FILE not in content:
        return None
    try:
        hash_S = load_tensors(content[SEEN_FILE])["document_hashes"]
    except (KeyError, ValueError, SafetensorError) as error:
        raise DamagedError(f"{folder}/{SEEN_FILE}", f"is damaged ({error})") from error
    if hash_S.dtype != torch.int64 or hash_S.ndim != 1:
        raise DamagedError(f"{folder}/{SEEN_FILE}", "is damaged (document_hashes is no list of 64-bit hashes)")
    return SeenDocuments(hash_S.numpy().view(np.uint64))


def todays_names(content: bytes) -> bytes:
    """JSON of a model folder with the names of today: earlier versions called a linear map `free`."""
    content = re.sub(rb'("projection"\s*:\s*)"free"', rb'\1"linear"', content)
    return re.sub(rb'"free"(\s*:\s*\{)', rb'"linear"\1', content)


def _read_stage(number: int, dim: int, projection: Projection, tensors: dict[str, Tensor]) -> FrozenStage:
    if projection not in get_args(Projection):
        raise ValueError(f"stage {number} has the unknown projection {projection!r}")
    prefix = f"stages.{number}."
    names = ["weight", "logits", *(MLP_TENSORS if projection == "residual_mlp" else ())]
    stage = FrozenStage(dim, projection, {name: tensors[prefix + name] for name in names})
    if stage.tensors["weight"].shape != (stage.d_in, stage.d_in) or not 1 <= dim <= stage.d_in:
        raise ValueError(f"stage {number} keeps {dim} dims of a weight {tuple(stage.tensors['weight'].shape)}")
    return stage
