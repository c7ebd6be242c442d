"""Number types that nested vectors are stored as, as columns of a Parquet file.

Shapes: N rows, d dims kept.
"""

import numpy as np
import pyarrow as pa
from torch import Tensor

from smec_core.config import VectorType
from smec_core.data.parquet import embedding_column
from smec_core.model.model import Model
from smec_core.model.quantize import to_bits, to_int8

RESCORE = "rescore"


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
