"""`smec export`: a trained model in the format of another tool.

Every format holds the first rows of the folded matrix and a division by the length. Before an export appears under its
name, the tool itself reads it back, and its vectors are compared with those of `Model.encode` at every dim.

Shapes: N rows, D input dims, d dims exported.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console import say, telling, warn
from pipelines.export.files import MADE_BY, check_encoder, check_replaceable, place
from pipelines.export.settings import ExportSettings
from smec_core.errors import InputError, SmecError, extra
from smec_core.model.files import load
from smec_core.model.model import Model

MODULES = {
    "onnx": "onnx_graph",
    "faiss": "faiss_index",
    "sentence-transformers": "sentence_encoder",
    "numpy": "numpy_folder",
}
TOLERANCE = 1e-5
"""Largest difference from `encode` in one number of a unit vector."""
CHECK_ROWS = 64


@telling("exporting")
def run(settings: ExportSettings) -> dict[str, Any]:
    """Exports a model, after checking that the export gives what the model gives.

    Returns:
        path, to, dim, dims (those of the model that the export gives), bytes, max_error (the largest difference from
        `Model.encode` in any number of the vectors compared, over all of `dims`).

    Raises:
        InputError: settings, model and encoder do not fit together, or `out` holds something else or cannot be written.
        SmecError: a library is missing, or the export gives other vectors than the model; then there is none.
    """
    if settings.to == "sentence-transformers" and settings.encoder is None:
        raise InputError("encoder: --to sentence-transformers needs --encoder, the encoder of the model's vectors")
    if settings.to != "sentence-transformers" and settings.encoder is not None:
        raise InputError(f"encoder: --to {settings.to} takes vectors and no text; leave --encoder out")
    model = load(settings.model)
    if model.matrix_DD is None:
        raise InputError(
            f"{settings.model}: has a stage of kind residual_mlp, which no matrix can express, so it cannot be "
            "exported; train one with projection=auto, linear or rotation"
        )
    dim = model.input_dim if settings.dim is None else settings.dim
    if dim > model.input_dim:
        raise InputError(f"dim is {dim}, but the model has {model.input_dim}; trained dims: {model.dims}")
    if settings.encoder is not None:
        check_encoder(settings.encoder)
    try:
        exporter = importlib.import_module(f"pipelines.export.formats.{MODULES[settings.to]}")
    except ModuleNotFoundError as error:
        raise SmecError(f"smec export --to {settings.to} needs {error.name}: {extra('export')}") from error
    out = Path(settings.out)
    check_replaceable(out, settings.to)
    if dim not in model.dims:
        warn(f"the model was trained for {', '.join(map(str, model.dims))} dims; its quality at {dim} is unmeasured")
    dims = sorted({dim, *(trained for trained in model.dims if trained < dim)}, reverse=True)
    origin = {
        "made_by": MADE_BY,
        "to": settings.to,
        "model_fingerprint": model.fingerprint,
        "input_dim": model.input_dim,
        "dim": dim,
        "dims": dims,
    }
    if settings.encoder is not None:
        origin["encoder"] = settings.encoder
    figures = {"path": settings.out, "to": settings.to, "dim": dim, "dims": dims}
    matrix_dD = np.ascontiguousarray(model.matrix_DD[:dim].numpy())

    def write(path: Path) -> None:
        if settings.encoder is not None:
            x_ND = exporter.write(matrix_dD, origin, path, settings.encoder)
            z_Nd = exporter.encode(path)
        else:
            x_ND = np.random.default_rng(0).standard_normal((CHECK_ROWS, model.input_dim), dtype=np.float32)
            exporter.write(matrix_dD, origin, path)
            z_Nd = exporter.encode(path, x_ND)
        figures["max_error"] = _check(model, x_ND, z_Nd, dims, settings.to)

    try:
        figures["bytes"] = place(out, settings.to, origin, write)
    except OSError as error:
        raise InputError(f"out: {out} cannot be written ({error.strerror or error})") from error
    size, difference = figures["bytes"], figures["max_error"]
    say(f"exported to {settings.to}, {dim} dims, {size:,} bytes, within {difference:.0e} of encode: {out}")
    return figures


def _check(model: Model, x_ND: np.ndarray, z_Nd: np.ndarray, dims: Sequence[int], to: str) -> float:
    """The largest difference of vectors, also cut and normalised again, from what the model makes of the originals.

    Raises:
        SmecError: it is more than TOLERANCE.
    """
    errors = {}
    for dim in dims:
        cut_Nd = z_Nd[:, :dim]
        if dim < z_Nd.shape[1]:
            cut_Nd = cut_Nd / np.linalg.norm(cut_Nd, axis=1, keepdims=True)
        errors[dim] = float(np.abs(cut_Nd - model.encode(x_ND, dim)).max())
        # false for NaN, too
        if not errors[dim] <= TOLERANCE:
            raise SmecError(
                f"the export to {to} gives other vectors than the model at {dim} dims: a difference of "
                f"{errors[dim]:.1e}, more than {TOLERANCE:.0e}; nothing was written, please report this"
            )
    return max(errors.values())
