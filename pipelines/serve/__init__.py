"""Encodes queries over HTTP, on Ray Serve: `smec serve`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.serve.job import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # the settings, which --help reads, need no Ray
    if name in __all__:
        from pipelines.serve import job

        return getattr(job, name)
    raise AttributeError(name)
