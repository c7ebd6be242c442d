"""A model as an ONNX graph: a product with the matrix, then a division by the length.

Shapes: N rows, D input dims, d dims exported.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# what runtimes of the last years read; the library's own newest is often ahead of them
OPSET, IR_VERSION = 17, 8
ORIGIN = "smec_export"
SMALLEST_NORM = 1e-12


def write(matrix_dD: np.ndarray, origin: dict[str, Any], path: Path) -> None:
    """Writes the graph: `embedding` (N, D) in, `vector` (N, d) out, float32, any N."""
    kept, input_dim = matrix_dD.shape
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["embedding", "matrix"], ["projected"], transB=1),
            # these three and not LpNormalization, which fewer runtimes have; a zero vector stays one, as in `encode`
            helper.make_node("ReduceL2", ["projected"], ["norm"], axes=[1], keepdims=1),
            helper.make_node("Max", ["norm", "smallest_norm"], ["divisor"]),
            helper.make_node("Div", ["projected", "divisor"], ["vector"]),
        ],
        "smec",
        inputs=[helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", input_dim])],
        outputs=[helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["N", kept])],
        initializer=[
            numpy_helper.from_array(matrix_dD, "matrix"),
            numpy_helper.from_array(np.array([SMALLEST_NORM], np.float32), "smallest_norm"),
        ],
    )
    model = helper.make_model(
        graph,
        producer_name="smec-ray",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        doc_string=f"Compresses {input_dim}-dim embeddings to nested vectors of {kept} dims, unit norm.",
    )
    helper.set_model_props(model, {ORIGIN: json.dumps(origin)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def read_origin(path: Path) -> dict[str, Any] | None:
    """The `origin` that `write` put into a file; None for any other file."""
    try:
        properties = onnx.load(path).metadata_props
        return next((json.loads(entry.value) for entry in properties if entry.key == ORIGIN), None)
    # what is not an ONNX file fails in as many ways as there are files
    except Exception:
        return None


def encode(path: Path, x_ND: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of embeddings with the graph, (N, d)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [z_Nd] = session.run(None, {"embedding": x_ND})
    return np.asarray(z_Nd)
