"""Compresses embeddings with a model into versions of a published folder: `smec compress`."""

from typing import TYPE_CHECKING, Any

from pipelines.compress.settings import CompressSettings

if TYPE_CHECKING:
    from pipelines.compress.job import compress

__all__ = ["CompressSettings", "compress"]


def __getattr__(name: str) -> Any:
    # the settings, which --help reads, need neither Ray nor torch
    if name in __all__:
        from pipelines.compress import job

        return getattr(job, name)
    raise AttributeError(name)
