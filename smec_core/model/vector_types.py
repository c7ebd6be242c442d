"""Nested vectors as columns of a table, of the number types that they are stored as.

Shapes: N rows, D input dims, d dims kept.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from smec_core.config import VectorType
from smec_core.data.parquet import embedding_column
from smec_core.data.vectors import tensor_over, unit_prefix
from smec_core.errors import InputError, SmecError
from smec_core.model.model import Model
from smec_core.model.quantize import to_bits, to_int8

RESCORE = "rescore"


def nested_columns(
    vectors_ND: np.ndarray,
    ids: pa.Array,
    dims: Sequence[int],
    kind: VectorType,
    model: Model,
    place: str,
    *,
    upgrade: bool = False,
    device: str = "cpu",
) -> dict[int, dict[str, pa.Array]]:
    """The columns that stand for some vectors, for each of some dims.

    Args:
        vectors_ND: sound vectors (N, D), of any scale.
        ids: of the rows, for messages.
        dims: how many to keep, the largest first.
        kind: number type of the columns.
        model: what encodes.
        place: what holds the rows, for messages.
        upgrade: the vectors are what the model's base encoded.
        device: of torch, to multiply on.

    Raises:
        InputError: the vectors or the dims are not what the model takes.
        SmecError: the model gives NaN or infinity.
    """
    x_ND = tensor_over(vectors_ND).to(device)
    z_Nd = model.upgrade(x_ND, dims[0]) if upgrade else model.encode(x_ND, dims[0])
    if not (finite_N := z_Nd.isfinite().all(dim=1)).all():
        row = int(finite_N.logical_not().nonzero()[0])
        raise SmecError(f"{place}: the model gives NaN or infinity for id {ids[row]}; train another model")
    return {dim: vector_columns(unit_prefix(z_Nd, dim), kind, model) for dim in dims}


def check_columns(names: Sequence[str], kind: VectorType, place: str) -> None:
    """Refuses a table that has a column of a name that the vectors need.

    Raises:
        InputError: it has.
    """
    if kind == "binary" and RESCORE in names:
        raise InputError(f"{place}: column {RESCORE}: binary vectors need this name; rename it")


def vector_columns(z_Nd: Tensor, kind: VectorType, model: Model) -> dict[str, pa.Array]:
    """Unit vectors (N, d) as the column `embedding`; of binary with the int8 vectors that its results are ranked by."""
    if kind == "int8":
        return {"embedding": embedding_column(to_int8(z_Nd, model.int8_scale(z_Nd.shape[1])).cpu().numpy())}
    if kind == "binary":
        rescore = vector_columns(z_Nd, "int8", model)["embedding"]
        return {"embedding": embedding_column(to_bits(z_Nd.cpu().numpy())), RESCORE: rescore}
    return {"embedding": embedding_column(z_Nd.cpu().numpy().astype(kind, copy=False))}


def vector_fields(dim: int, kind: VectorType) -> list[pa.Field]:
    """Names and types of those columns."""
    if kind == "binary":
        return [
            pa.field("embedding", pa.list_(pa.uint8(), -(-dim // 8))),
            pa.field(RESCORE, pa.list_(pa.int8(), dim)),
        ]
    return [pa.field("embedding", pa.list_(pa.from_numpy_dtype(np.dtype(kind)), dim))]


def vector_bytes(dim: int, kind: VectorType) -> int:
    """Bytes of one vector, with what it is rescored by."""
    return sum(field.type.list_size * field.type.value_type.bit_width // 8 for field in vector_fields(dim, kind))
