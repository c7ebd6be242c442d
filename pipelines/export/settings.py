"""What `smec export` takes."""

from typing import Literal

from pydantic import Field

from pipelines.storage.model_folder import LocalPath
from smec_core.config import Settings


class ExportSettings(Settings):
    """Export a model to another tool, and check there that it gives the same vectors at every dim.

    onnx: a graph, embeddings in, unit vectors out. faiss: an empty index that takes original embeddings.
    sentence-transformers: the encoder with the model behind it, text in. numpy: a matrix and a small file that reads
    it, for query services without torch.

    An export that differs from the model by more than 1e-5 fails and leaves nothing. All but numpy need the extra
    export of this package.

    Example: smec export --model models/products --to onnx --out products.onnx --dim 96
    """

    model: str
    """Model folder, as `smec train` writes it."""
    to: Literal["onnx", "faiss", "sentence-transformers", "numpy"]
    """Format to write."""
    out: LocalPath
    """Path to write: a file for onnx and faiss, else a folder; an earlier export of the same format is replaced."""
    dim: int | None = Field(None, ge=1)
    """Dims of the vectors that the export gives; default: all, and users cut them."""
    encoder: str | None = None
    """For sentence-transformers: the encoder that made the vectors the model was trained on; a folder, or a name on the
    Hugging Face hub."""
