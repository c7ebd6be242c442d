"""SMEC, Sequential Matryoshka Embedding Compression (EMNLP 2025): the method, without any cluster code."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smec_core.model.files import load
    from smec_core.model.model import Model

__version__ = "0.1.0"
__all__ = ["Model", "load", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `smec --help` must not pay for it
    if name == "Model":
        from smec_core.model.model import Model

        return Model
    if name == "load":
        from smec_core.model.files import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
