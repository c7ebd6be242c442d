"""SMEC, Sequential Matryoshka Embedding Compression (EMNLP 2025): the method, without any cluster code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smec_core.config import TrainConfig
    from smec_core.errors import InputError, SmecError
    from smec_core.evaluation.report import Evaluation
    from smec_core.evaluation.report import evaluate_model as evaluate_model
    from smec_core.model.files import load
    from smec_core.model.model import Model
    from smec_core.model.published import Published, published
    from smec_core.training.fit import fit

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "InputError",
    "Model",
    "Published",
    "SmecError",
    "TrainConfig",
    "fit",
    "load",
    "published",
    "__version__",
]

_HOMES = {
    "Evaluation": "evaluation.report",
    "InputError": "errors",
    "Model": "model.model",
    "Published": "model.published",
    "SmecError": "errors",
    "TrainConfig": "config",
    "evaluate_model": "evaluation.report",
    "fit": "training.fit",
    "load": "model.files",
    "published": "model.published",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `smec --help` must not pay for it
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
