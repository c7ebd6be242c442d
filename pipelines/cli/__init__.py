"""The command `smec`: what it is told, made into the settings of a job."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cli.main import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # a process begins with its signals, before it imports the rest
    if name == "app":
        from pipelines.cli.main import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
