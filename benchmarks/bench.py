"""Runs the benchmarks of speed and memory one after another, and writes a page of their figures.

    python -m benchmarks.bench --out results/bench [--data DATA] [--reference PLAIN.py] [--only NAME,NAME] [--quick]

Each runs in a process of its own and writes OUT/NAME.json; OUT/README.md is made of all those that are there, so that
--only renews some, and without any a page is made anew. One that fails is named at the end; its figures of before stay.
"""

import argparse
import ast
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

QUICK = "A small run (`--quick`), which shows that it works; its figures say nothing."
HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder that takes --json FILE.

    Attributes:
        name: of the module.
        data: whether it takes --data DATA.
        reference: whether it takes --reference PLAIN.py.
        quick: arguments for a small run that shows that it works.
    """

    name: str
    data: bool = False
    reference: bool = False
    quick: str = ""

    def arguments(self, args: argparse.Namespace) -> list[str]:
        """What it is called with, but for --json."""
        found = shlex.split(self.quick) if args.quick else []
        found += ["--data", args.data] if self.data and args.data else []
        return found + (["--reference", args.reference] if self.reference and args.reference else [])


# those of speed and memory; without gpu and large, which need a machine for themselves
BENCHMARKS = (
    Benchmark("step_time", data=True, quick="--steps 2 --runs 1"),
    Benchmark("whole_train", data=True, reference=True, quick="--size 600 --dims 64,32 --set epochs=1"),
    Benchmark("memory_search", quick="--shapes 64x500x10 --rounds 2"),
    Benchmark("pca", quick="--shapes 2000x64 --rounds 1"),
    Benchmark("scan", quick="--rows 40000 --dim 64 --files 4 --rounds 1"),
    Benchmark("scaling", quick="--size 3000 --batch 128 --dims 64 --projections linear"),
    Benchmark("growth", quick="--axes queue"),
    Benchmark("compress_speed", quick="--rows 40000"),
    Benchmark("compress_memory", quick="--rows 20000 --factor 2"),
    Benchmark("serve_load", quick="--seconds 2 --requests 100"),
    Benchmark("numpy_loader", quick="--rounds 2"),
    Benchmark("startup", data=True, quick="--size 600 --rounds 1"),
)


def run(benchmark: Benchmark, args: argparse.Namespace) -> bool:
    """Runs a benchmark; whether it went well, and has left its figures."""
    words, found = benchmark.arguments(args), args.out / f"{benchmark.name}.json"
    partial = found.with_suffix(".partial")
    module = ["-m", f"benchmarks.{benchmark.name}"]
    print(f"== {shlex.join(['python', *module, *words])}", flush=True)
    if subprocess.run([sys.executable, *module, *words, "--json", str(partial)]).returncode or not partial.exists():
        return False
    shown = [Path(word).name if word in (args.data, args.reference) else word for word in words]
    record = {"command": shlex.join(["python", *module, *shown]), "machine": machine(), "quick": args.quick}
    found.write_text(json.dumps(record | {"figures": json.loads(partial.read_text())}, indent=2) + "\n")
    partial.unlink()
    return True


def machine() -> str:
    """What figures of time depend on, in a line."""
    import torch
    from joblib import cpu_count

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    python = sys.version.split()[0]
    return f"{cpu}, {cpu_count()} cores, {gpu}, torch {torch.__version__}, Python {python}, {datetime.now(UTC):%F}"


def page(out: Path) -> str:
    """The page of all figures that are there."""
    lines = [
        "# Benchmarks",
        "",
        "Speed and memory, made by `make bench`. What is compared is measured in turn in one run, so that both meet "
        "the same machine, and given as a ratio; absolute figures are those of the machine named below each heading. "
        "Each heading is a module in `benchmarks/`, whose description says what its figures mean.",
        "",
    ]
    for benchmark in BENCHMARKS:
        path = out / f"{benchmark.name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        lines += [f"## {benchmark.name}", "", *_description(benchmark.name), f"    {record['command']}", ""]
        lines += [f"{record['machine']}.", *([QUICK] if record["quick"] else []), ""]
        for caption, rows in tables_of(record["figures"]):
            lines += [*([f"{caption}:", ""] if caption else []), *_markdown(rows), ""]
    return "\n".join(lines)


def _description(name: str) -> list[str]:
    """The description of a module without the indented lines of its calls."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    return [*"\n\n".join(part for part in text.split("\n\n") if not part.startswith("    ")).splitlines(), ""]


def tables_of(figures: Any, caption: str = "") -> Iterator[tuple[str, list[Row]]]:
    """Tables, with captions, of figures in JSON: lists of objects, and objects of objects, are rows.

    Single values are told in a table of their own.
    """
    if isinstance(figures, list):
        yield caption, [_flat(row) for row in figures]
        return
    nested = {name: value for name, value in figures.items() if isinstance(value, dict) or _is_table(value)}
    if len(nested) == len(figures) and all(_is_row(value) for value in nested.values()):
        yield caption, [{"": name} | _flat(value) for name, value in nested.items()]
        return
    if single := {name: value for name, value in figures.items() if name not in nested}:
        yield caption, [single]
    for name, value in nested.items():
        yield from tables_of(value, f"{caption}, {name}" if caption else name)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_row(value: Any) -> bool:
    if not isinstance(value, dict) or any(_is_table(one) for one in value.values()):
        return False
    return not all(isinstance(one, dict) for one in value.values())


def _flat(value: Any, prefix: str = "") -> Row:
    if not isinstance(value, dict):
        return {prefix.strip(): value}
    found: dict[str, Any] = {}
    for name, one in value.items():
        found |= _flat(one, f"{prefix}{name} ") if isinstance(one, dict) else {f"{prefix}{name}": one}
    return found


def _markdown(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    texts = {name: any(isinstance(row.get(name), str) for row in rows) for name in columns}
    lines = [f"| {' | '.join(columns)} |", "|" + "|".join("---" if texts[name] else "---:" for name in columns) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for README.md and the figures")
    parser.add_argument("--data", help="dataset with train and test judgements; default: what each makes by itself")
    parser.add_argument("--reference", help="plain implementation to train beside, as of whole_train")
    parser.add_argument("--only", help="names, with commas; default: all")
    parser.add_argument("--quick", action="store_true", help="small runs that only show that everything works")
    args = parser.parse_args(arguments)
    names = [one.name for one in BENCHMARKS]
    wanted = names if args.only is None else [name for name in args.only.split(",") if name]
    if unknown := set(wanted) - set(names):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = [one.name for one in BENCHMARKS if one.name in wanted and not run(one, args)]
    (args.out / "README.md").write_text(page(args.out), encoding="utf-8")
    print(args.out / "README.md")
    if failed:
        sys.exit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
