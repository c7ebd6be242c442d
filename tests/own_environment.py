"""Environments of their own, for packages whose dependencies are not those of this project."""

import fcntl
import os
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path

import pytest


def own_environment(name: str, requirements: Path, is_layer: bool = False) -> Path:
    """The folder of an environment, outside of this repository; made on the first call, in a minute or so.

    Args:
        name: of it, in the folder of caches.
        requirements: file of all of its packages, with their versions.
        is_layer: what it lacks is taken from this project's environment, so that torch is there once.
    """
    below = sysconfig.get_path("purelib") if is_layer else ""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smec"
    cache.mkdir(parents=True, exist_ok=True)
    made = sha256(requirements.read_bytes() + sys.version.encode() + below.encode()).hexdigest()[:12]
    folder = cache / f"{name}-{made}"
    with (cache / f"{name}-{made}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # a half-made environment has no stamp, so it is made from the start
        if not (folder / ".ready").exists():
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
            _run([*install, "--no-deps"] if is_layer else install)
            if is_layer:
                own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
                (own / "below.pth").write_text(f"{below}\n")
            (folder / ".ready").touch()
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}")
