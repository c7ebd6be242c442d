"""Whether two commits train the same models, byte for byte: for changes that are not about numbers.

Each training is a process of its own, run once in a checkout of either commit. What is compared is the sha256 of its
`adapter.safetensors`. The bytes depend on the processor, so a hash of another machine says nothing: this file holds the
trainings and no hashes. Models of finished trainings stay in --out, and the same command does not train them again.

python -m benchmarks.golden main HEAD --data DATA --out outputs/golden

DATA has the folders `scifact` and `fashion`; a third dataset is made in --out by `smec sample` of the first commit,
once.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

SAMPLE_PAIRS = 3000
LOOK_SECONDS = 0.02

TRAININGS = {
    "sample": "--data {sample} --dims 64,16 --set epochs=2",
    "sample-defaults": "--data {sample} --dims 32",
    "sample-2-workers": "--data {sample} --dims 64,16 --set epochs=2 --workers 2",
    "sample-no-judgements": "--data {sample}-without-judgements --dims 64,16 --set epochs=2",
    "scifact": "--data {scifact} --dims 96,24 --set epochs=2",
    "scifact-2-workers": "--data {scifact} --dims 96,24 --set epochs=2 --workers 2",
    "scifact-no-refit": "--data {scifact} --dims 96,24 --set epochs=2 --set refit=false",
    "scifact-hold-out": "--data {scifact} --dims 96 --set epochs=2 --set hold_out=0.3",
    "scifact-no-judgements": "--data {scifact}-without-judgements --dims 96 --set epochs=2",
    "scifact-no-guard": "--data {scifact} --dims 96,24 --set epochs=2 --set guard=false --set projection=rotation",
    "fashion": "--data {fashion} --dims 128,32 --set epochs=2",
    "fashion-seed": "--data {fashion} --dims 128 --set epochs=2 --seed 7",
    "fashion-memory": "--data {fashion} --dims 128,32 --set epochs=2 --set alpha=0.1",
    "fashion-memory-2-workers": "--data {fashion} --dims 128,32 --set epochs=2 --set alpha=0.1 --workers 2",
    "fashion-local-memory": "--data {fashion} --dims 128 --set epochs=2 --set alpha=0.1 --set memory=local --workers 2",
    "fashion-paper": "--data {fashion} --dims 128,32 --set epochs=2 --preset paper",
    "fashion-parallel": "--data {fashion} --dims 128,32 --set epochs=2 --set schedule=parallel",
    "fashion-residual-mlp": "--data {fashion} --dims 128,32 --set epochs=2 --set projection=residual_mlp",
    "fashion-selection": "--data {fashion} --dims 128,32 --set epochs=2 --set projection=selection",
    "fashion-random-start": "--data {fashion} --dims 128,32 --set epochs=2 --set init=random --set lookahead=0",
    "fashion-from": "--data {fashion} --dims 128,32,8 --set epochs=2 --from {models}/fashion",
    "fashion-warm-start": "--data {fashion} --dims 128,32 --set epochs=2 --warm-start {models}/fashion",
    "fashion-compatible": "--data {fashion} --dims 128,32 --set epochs=2 --warm-start {models}/fashion --compatible",
    "fashion-killed": "--data {fashion} --dims 128,32 --set epochs=3 --set checkpoint_every=5",
}
"""Arguments of `smec train`. What ends in -killed is killed at its second checkpoint, and goes on with the same
command."""


def run(commits: list[str], data: Path, out: Path, only: str, at_once: int) -> bool:
    """Trains with each commit, and prints the hashes.

    Args:
        commits: names that git knows; the first makes the sample.
        data: folder of the datasets.
        out: folder for checkouts, the sample and the models.
        only: regular expression of the trainings to run.
        at_once: trainings side by side.

    Returns:
        Whether all are the same.
    """
    names = [name for name in TRAININGS if re.search(only, name)]
    later = [name for name in names if "{models}" in TRAININGS[name]]
    rounds = [[name for name in names if name not in later], later]
    if later and "fashion" not in names:
        rounds[0].append("fashion")
    sums: list[dict[str, str]] = []
    for commit in commits:
        with checkout(commit, out) as code, ThreadPoolExecutor(at_once) as pool:
            folders = datasets(code, data, out) | {"models": f"{code}-models"}
            sums.append({})
            for chosen in rounds:
                sums[-1].update(zip(chosen, pool.map(partial(trained, code, folders), chosen), strict=True))
    different = [name for name in names if len({found[name] for found in sums}) > 1]
    for name in names:
        verdict = "DIFFERENT" if name in different else "same"
        print(f"{name:26} {' '.join(found[name][:16] for found in sums)} {verdict}")
    print(f"{len(names) - len(different)} of {len(names)} trainings give the same bytes")
    return not different


@contextmanager
def checkout(commit: str, out: Path) -> Iterator[Path]:
    """A work tree of a commit, for as long as it is needed."""
    ask = partial(subprocess.run, check=True, text=True, stdout=subprocess.PIPE)
    sha = ask(["git", "rev-parse", "--verify", f"{commit}^{{commit}}"]).stdout.strip()
    folder = out.resolve() / sha[:12]
    ask(["git", "worktree", "add", "--force", "--detach", str(folder), sha], stderr=subprocess.DEVNULL)
    try:
        yield folder
    finally:
        ask(["git", "worktree", "remove", "--force", str(folder)])


def smec(code: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a command of a checkout; its lines go to a log beside the checkout."""
    # the workers that Ray starts import the same checkout; with one thread, sums do not depend on the number of cores
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    with Path(f"{code}.log").open("ab") as log:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        return subprocess.Popen(command, cwd=code, env=environment, stdout=log, stderr=log)


def datasets(code: Path, data: Path, out: Path) -> dict[str, str]:
    """Folders of the datasets by name; beside sample and scifact lies a copy without judgements."""
    sample = out.resolve() / "data" / "sample"
    if not sample.exists() and smec(code, "sample", str(sample), "--size", str(SAMPLE_PAIRS)).wait():
        raise SystemExit(f"smec sample failed: {code}.log")
    found = {"sample": str(sample)}
    for name in ("scifact", "fashion"):
        link = sample.with_name(name)
        link.unlink(missing_ok=True)
        link.symlink_to((data / name).resolve())
        found[name] = str(link)
    for name in ("sample", "scifact"):
        bare = sample.with_name(f"{name}-without-judgements")
        bare.mkdir(exist_ok=True)
        for entry in sample.with_name(name).iterdir():
            if entry.name.startswith(("corpus", "queries")) and not (bare / entry.name).exists():
                (bare / entry.name).symlink_to(entry.resolve())
    return found


def trained(code: Path, folders: dict[str, str], name: str) -> str:
    """The sha256 of the model of a training, which is trained where it is not there yet."""
    model = Path(folders["models"]) / name
    adapter = model / "adapter.safetensors"
    if not adapter.exists():
        arguments = ["train", *TRAININGS[name].format(**folders).split(), "--out", str(model)]
        arguments += ["--set", f"storage={model}-runs", "--set", "cpus_per_worker=1"]
        started = time.monotonic()
        if name.endswith("-killed"):
            _kill_at_second_checkpoint(smec(code, *arguments), Path(f"{model}-runs"))
        if smec(code, *arguments).wait():
            raise SystemExit(f"{name} failed: {code}.log")
        print(f"{code.name} {name}: {time.monotonic() - started:.0f} s", flush=True)
    return hashlib.sha256(adapter.read_bytes()).hexdigest()


def _kill_at_second_checkpoint(process: subprocess.Popen[bytes], runs: Path) -> None:
    while len({path.name for path in runs.rglob("checkpoint_*")}) < 2:
        if process.poll() is not None:
            raise SystemExit(f"the training in {runs} ended before it could be killed")
        time.sleep(LOOK_SECONDS)
    process.kill()
    process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, help="names that git knows")
    parser.add_argument("--data", type=Path, required=True, help="folder with scifact and fashion")
    parser.add_argument("--out", type=Path, default=Path("outputs/golden"), help="folder for what is made")
    parser.add_argument("--only", default="", metavar="REGEX", help="trainings to run; default: all")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    asked = parser.parse_args()
    sys.exit(0 if run(asked.commits, asked.data, asked.out, asked.only, asked.at_once) else 1)
