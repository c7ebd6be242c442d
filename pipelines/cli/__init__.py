"""The command `smec`: what it is told, made into the settings of a job."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cli.main import app
    from pipelines.cli.process import main

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    # a process begins with its signals, before it imports the rest
    if name == "app":
        from pipelines.cli.main import app

        return app
    if name == "main":
        from pipelines.cli.process import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
