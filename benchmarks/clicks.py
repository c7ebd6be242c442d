"""A click log over a judged dataset, as a search page with position bias and mistaken clicks would write it.

    python -m benchmarks.clicks DATA FOLDER --seed 0

writes into FOLDER

    clicks/*.parquet    the log: query_id, doc_id, timestamp, rank (from 1), clicked; a row a document shown
    data/               corpus and queries of DATA, by links, without judgements: what `smec judge` writes them into
    truth/              the same vectors with the true judgements: train has those of the queries in the log, test
                        those of queries that are not
    clicks.json         what the log was made with

Users follow the position-based model: a document at rank k is looked at with probability (1 / k)^eta, and one that is
looked at is clicked with probability `relevant` times its score over the query's highest, or `noise` where it is not
relevant. What is shown are the first documents of a search by the full vectors, whose cosines differ a little from
session to session (`jitter`), as ranks do while a search engine changes. Some queries are asked often, most seldom:
the n-th in a random order with a weight of 1 / n^popularity. A relevant document that this search does not show is
never clicked.

Shapes: Q queries in the log, C candidates of a query, S sessions of a piece, K documents shown.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smec_core.data.dataset import Dataset, hash_share
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable, unit_rows

CANDIDATES = 200
# what is in memory at a time
PIECE_SESSIONS = 10_000
START = np.datetime64("2026-01-01T00:00:00", "us")
DAY_US = 86_400_000_000


def unit_vectors(table: EmbeddingTable) -> np.ndarray:
    """All vectors of a table, at norm 1."""
    return np.concatenate([unit_rows(block.vectors_ND) for block in table.blocks()])


def candidates_of(dataset: Dataset, judged: Judgements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a search could show to each judged query: documents, cosines, shares of the best score."""
    docs_ND = unit_vectors(dataset.corpus)
    cos_QN = unit_vectors(dataset.queries)[judged.query_row_Q] @ docs_ND.T
    row_QC = np.argsort(-cos_QN, axis=1, kind="stable")[:, :CANDIDATES]
    share_QN = np.zeros(cos_QN.shape, np.float32)
    highest_Q = np.maximum.reduceat(judged.score_J, judged.offset_Q1[:-1])
    share_QN[judged.query_J, judged.doc_row_J] = np.maximum(judged.score_J, 0) / highest_Q[judged.query_J]
    return row_QC, np.take_along_axis(cos_QN, row_QC, 1), np.take_along_axis(share_QN, row_QC, 1)


def write_clicks(folder: Path, dataset: Dataset, judged: Judgements, args: argparse.Namespace) -> None:
    """Writes the log, a piece at a time."""
    row_QC, cos_QC, share_QC = candidates_of(dataset, judged)
    query_ids = np.array(dataset.queries.ids().to_pylist())[judged.query_row_Q]
    doc_ids = np.array(dataset.corpus.ids().to_pylist())
    weight_Q = np.random.default_rng((args.seed, 0)).permutation(1 / np.arange(1, len(judged) + 1) ** args.popularity)
    look_K = np.arange(1, args.shown + 1) ** -args.eta
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, args.sessions, PIECE_SESSIONS)):
        rng = np.random.default_rng((args.seed, 1, number))
        sessions = min(PIECE_SESSIONS, args.sessions - start)
        query_S = rng.choice(len(judged), sessions, p=weight_Q / weight_Q.sum())
        cos_SC = cos_QC[query_S] + args.jitter * rng.standard_normal((sessions, row_QC.shape[1]))
        place_SK = np.argsort(-cos_SC, axis=1, kind="stable")[:, : args.shown]
        share_SK = np.take_along_axis(share_QC[query_S], place_SK, 1)
        click_SK = np.where(share_SK > 0, args.relevant * share_SK, args.noise) * look_K
        time_S = START + rng.integers(0, args.days * DAY_US, sessions).astype("timedelta64[us]")
        rows = {
            "query_id": np.repeat(query_ids[query_S], args.shown),
            "doc_id": doc_ids[np.take_along_axis(row_QC[query_S], place_SK, 1)].reshape(-1),
            "timestamp": pa.array(np.repeat(time_S, args.shown), pa.timestamp("us", "UTC")),
            "rank": np.tile(np.arange(1, args.shown + 1, dtype=np.int32), sessions),
            "clicked": (rng.random(click_SK.shape) < click_SK).reshape(-1),
        }
        pq.write_table(pa.table(rows), folder / f"{number:04}.parquet")


def write_judged(folder: Path, dataset: Dataset, **splits: Judgements) -> None:
    """A dataset with the vectors of another, by links, and some judgements."""
    folder.mkdir(parents=True)
    for name in ("corpus", "queries"):
        [found] = [path for path in (Path(dataset.uri) / name, Path(dataset.uri) / f"{name}.parquet") if path.exists()]
        (folder / found.name).symlink_to(found.resolve())
    doc_ids, query_ids = dataset.ids
    for split, judged in splits.items():
        (folder / "qrels").mkdir(exist_ok=True)
        rows = {
            "query_id": query_ids.ids_of(judged.query_row_Q[judged.query_J]),
            "doc_id": doc_ids.ids_of(judged.doc_row_J),
            "score": judged.score_J,
        }
        pq.write_table(pa.table(rows), folder / f"qrels/{split}.parquet")


def generate(args: argparse.Namespace) -> None:
    """Writes log, data and truth."""
    dataset = Dataset.open(str(args.data))
    train, test = dataset.splits["train"].with_positives(), dataset.splits["test"].with_positives()
    if args.leave_out:
        ids = dataset.ids[1].ids_of(train.query_row_Q)
        out_Q = np.array([hash_share(name, b"left out") < args.leave_out for name in ids])
        train, test = train.select(~out_Q), train.select(out_Q)
    write_judged(args.folder / "truth", dataset, train=train, test=test)
    write_judged(args.folder / "data", dataset)
    write_clicks(args.folder / "clicks", dataset, train, args)
    settings = {name: value for name, value in vars(args).items() if name not in ("data", "folder")}
    (args.folder / "clicks.json").write_text(json.dumps(settings, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder with train and test judgements")
    parser.add_argument("folder", type=Path, help="where to write; not there yet")
    parser.add_argument("--sessions", type=int, default=100_000, help="searches in the log")
    parser.add_argument("--shown", type=int, default=20, help="documents that a search shows")
    parser.add_argument("--eta", type=float, default=1.0, help="position bias: 0 is none")
    parser.add_argument("--relevant", type=float, default=0.7, help="clicks on a relevant document that is looked at")
    parser.add_argument("--noise", type=float, default=0.05, help="clicks on another document that is looked at")
    parser.add_argument("--jitter", type=float, default=0.05, help="standard deviation of what is added to cosines")
    parser.add_argument("--popularity", type=float, default=1.0, help="how unevenly queries are asked: 0 is evenly")
    parser.add_argument("--days", type=int, default=30, help="that the log spans, from 2026-01-01")
    parser.add_argument("--leave-out", type=float, default=0.0, help="share of the train queries to test on instead")
    parser.add_argument("--seed", type=int, default=0)
    generate(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
