"""SMEC, Sequential Matryoshka Embedding Compression (EMNLP 2025): the method, without any cluster code."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smec_core.model.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "load", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `smec --help` must not pay for it
    if name in ("Model", "load"):
        from smec_core.model import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
