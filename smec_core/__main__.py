"""The command `smec`, also as `python -m smec_core`."""

import importlib
import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Entry point of `smec`: the commands are in the package `pipelines`, a name that others use, too."""
    found = importlib.util.find_spec("pipelines")
    here = Path(__file__).resolve().parents[1]
    places = [Path(place).resolve() for place in found.submodule_search_locations or ()] if found else []
    if here / "pipelines" not in places:
        where = ", ".join(map(str, places)) or "nowhere"
        sys.exit(
            f"smec: the package pipelines of smec lies in {here}, but Python finds {where}; uninstall or rename the "
            "other one, or give smec an environment of its own"
        )
    importlib.import_module("pipelines.cli.process").main()


if __name__ == "__main__":
    main()
