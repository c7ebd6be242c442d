"""A dataset whose vectors are those of two others side by side, as people join the embeddings of two models.

    python -m benchmarks.concatenated A B OUT

Folders A and B hold the same ids, in any order; judgements are those of A. Each part has unit norm, so that both weigh
the same.

Shapes: N rows, D dims of A, E dims of B.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smec_core.data.dataset import Dataset
from smec_core.data.parquet import EmbeddingTable, write_embeddings
from smec_core.evaluation.corpus_search import read_rows


def write_joined(path: Path, first: EmbeddingTable, second: EmbeddingTable) -> None:
    """Writes the rows of the first table, each with the second's vector of its id behind its own: N of D + E dims."""
    ids = first.ids().to_pylist()
    row_of = {name: row for row, name in enumerate(second.ids().to_pylist())}
    missing = [name for name in ids if name not in row_of]
    if missing:
        sys.exit(f"concatenated: {missing[0]!r} of A is not in {path.stem} of B")
    x_ND = read_rows(first, np.arange(first.rows)).numpy()
    x_NE = read_rows(second, np.array([row_of[name] for name in ids])).numpy()
    write_embeddings(str(path), ids, np.hstack([x_ND, x_NE]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="dataset folder A, with the judgements")
    parser.add_argument("second", help="dataset folder B")
    parser.add_argument("out", type=Path, help="where to write; not there yet")
    args = parser.parse_args(arguments)
    first, second = Dataset.open(args.first), Dataset.open(args.second)
    args.out.mkdir(parents=True)
    for name in ("corpus", "queries"):
        write_joined(args.out / f"{name}.parquet", getattr(first, name), getattr(second, name))
    (args.out / "qrels").mkdir()
    for file in (Path(args.first) / "qrels").iterdir():
        shutil.copyfile(file, args.out / "qrels" / file.name)


if __name__ == "__main__":
    main()
