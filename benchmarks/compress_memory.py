"""Peak memory of `smec compress` on two corpora, one ten times the other: it must not grow with the corpus.

    python benchmarks/compress_memory.py [--rows 250000] [--factor 10]

Each corpus is compressed by a fresh process with a Ray cluster of its own, while this one samples /proc: anonymous
memory of the driver and of the largest actor, and what lies in Ray's object store (shared memory). Both corpora have
the same number of files, so files grow with the corpus, too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import peak_mib

INPUT_DIM, DIM, FILES, WORKERS = 128, 32, 2, 2
ROW_GROUP_ROWS = 10_000


def write_corpus(folder: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from smec_core.parquet import embedding_column

    folder.mkdir()
    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), INPUT_DIM))])
    for file in range(FILES):
        with pq.ParquetWriter(folder / f"{file}.parquet", schema, use_dictionary=["id"]) as writer:
            for start in range(0, rows // FILES, ROW_GROUP_ROWS):
                stop = min(start + ROW_GROUP_ROWS, rows // FILES)
                ids = pa.array([f"document-{file}-{row}" for row in range(start, stop)])
                vectors_ND = rng.standard_normal((stop - start, INPUT_DIM), dtype=np.float32)
                writer.write_table(pa.table([ids, embedding_column(vectors_ND)], schema=schema))


def write_model(folder: Path) -> None:
    from smec_core.adapter import FrozenStage
    from smec_core.model import Model

    rotation = torch.linalg.qr(torch.randn(INPUT_DIM, INPUT_DIM, generator=torch.Generator().manual_seed(0)))[0]
    stage = FrozenStage(DIM, "rotation", {"weight": rotation, "logits": torch.arange(INPUT_DIM, 0, -1).float()})
    Model([stage], INPUT_DIM, {"dims": [INPUT_DIM, DIM]}, {}).save(folder)


def compress(model: str, corpus: str, out: str) -> None:
    from pipelines.compress import CompressSettings, run

    settings = CompressSettings(model=model, input=corpus, output=out, dim=DIM, workers=WORKERS, gpu="off")
    print(json.dumps(run(settings)))


def measure(model: Path, corpus: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--job", str(model), str(corpus), str(out)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    held = peak_mib(job, "ray::MapWorker")
    peak = {
        "driver": held["driver"]["anonymous"],
        "largest actor": held["actor"]["anonymous"],
        "object store": max(held["driver"]["shared"], held["actor"]["shared"]),
    }
    if job.returncode:
        raise SystemExit(f"compress failed with exit code {job.returncode}")
    assert job.stdout is not None
    figures = json.loads(job.stdout.read().splitlines()[-1])
    return {"rows": figures["rows"], "seconds": figures["seconds"], **peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000, help="rows of the smaller corpus")
    parser.add_argument("--factor", type=int, default=10, help="how many times larger the other one is")
    parser.add_argument("--job", nargs=3, metavar=("MODEL", "CORPUS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        compress(*arguments.job)
        return
    with tempfile.TemporaryDirectory(prefix="smec-") as name:
        folder = Path(name)
        write_model(folder / "model")
        results = []
        for rows in (arguments.rows, arguments.rows * arguments.factor):
            write_corpus(folder / f"corpus-{rows}", rows)
            results.append(measure(folder / "model", folder / f"corpus-{rows}", folder / f"out-{rows}"))
    small, large = results
    print(f"{INPUT_DIM} dims to {DIM}, {FILES} files, {WORKERS} actors; peak MiB")
    print(f"{'':14}{int(small['rows']):>12,}{int(large['rows']):>12,}{'ratio':>9}")
    for key in ("driver", "largest actor", "object store", "seconds"):
        print(f"{key:14}{small[key]:>12.1f}{large[key]:>12.1f}{large[key] / max(small[key], 1e-9):>9.2f}")


if __name__ == "__main__":
    main()
