"""`smec judge`: a log of clicks becomes the judgements of a dataset."""

import shlex
import time
from collections.abc import Callable
from typing import Any

from rich.table import Table

from pipelines.console import RowProgress, say, show, telling, warn
from pipelines.data.check import scores_table
from pipelines.judge.output import QrelsFolder
from pipelines.judge.settings import JudgeSettings
from smec_core.clicks.judge import figures_of, judge, table_of
from smec_core.clicks.log import ClickLog
from smec_core.clicks.reading import read_log
from smec_core.data.dataset import MIN_TRAIN_QUERIES
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.seen import LEAST_QUERIES
from smec_core.data.table_files import stamp_of, states_of
from smec_core.data.tables import TABLES, check_dataset, check_names, refuse_draft
from smec_core.data.uri import join_uri, open_filesystem, public_uri, without_slash
from smec_core.errors import DamagedError, SmecError

RECIPE = 1
"""Counts up when the same log and settings give other judgements."""
SHOWN_RANKS = 10


def run(settings: JudgeSettings) -> dict[str, Any]:
    """Makes judgements of a log, and says what came of it.

    Returns:
        path: of the folder with the judgements.
        made: whether they were made now, or were there already.
        and what `smec_core.clicks.judge.figures_of` says: rows, left_out, clicks, split, propensities, splits.

    Raises:
        InputError: a log or dataset that breaks the rules, or judgements that must not be replaced.
        SmecError: the log changed while it was read.
    """
    log = ClickLog(settings.clicks, settings.columns)
    filesystem, root = open_filesystem(without_slash(settings.data))
    refuse_draft(settings.data)
    check_dataset(filesystem, root)
    check_names(filesystem, root)
    corpus, queries = (
        EmbeddingTable.open(join_uri(settings.data, name), names=settings.columns.of_data) for name in TABLES
    )
    folder = QrelsFolder(settings.data)

    def stamp() -> list[str]:
        data = [part.path for table in (corpus, queries) for part in table.files]
        return [stamp_of(states_of(log.filesystem, log.paths)), stamp_of(states_of(filesystem, data))]

    plan = {
        "recipe": RECIPE,
        "clicks": public_uri(settings.clicks),
        "settings": settings.model_dump(mode="json", exclude={"clicks", "data", "replace"}),
        "files": stamp(),
    }
    try:
        record = folder.made(plan)
    except DamagedError:
        if not settings.replace:
            raise
        record = None
    if record:
        figures: dict[str, Any] = record["figures"]
        say(f"nothing to do: {folder.uri} holds the judgements of this log already")
        _tell(settings, figures)
        return {"path": folder.uri, "made": False, **figures}
    folder.check_replaceable(settings.replace)
    with telling("reading the log"):
        read = read_log(log, settings, _progress())
    with telling("making judgements of it"):
        found = judge(log, read, settings, corpus, queries)
    figures = {"dim": corpus.dim, **figures_of(read, found)}
    if stamp() != plan["files"]:
        raise SmecError(f"{public_uri(settings.clicks)} or {public_uri(settings.data)} changed meanwhile; run again")
    tables = {name: table_of(part, found.ids) for name, part in found.parts.items()}
    folder.write(tables, {"plan": plan, "figures": figures})
    say(f"wrote {', '.join(f'{name} ({len(table):,} judgements)' for name, table in tables.items())}: {folder.uri}")
    _tell(settings, figures)
    return {"path": folder.uri, "made": True, **figures}


def _progress() -> Callable[[int], None]:
    """Says now and then how many rows are read."""
    started = said = time.monotonic()

    def tell(rows: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= RowProgress.EVERY_SECONDS:
            said = now
            # how many a log of text has is not known before
            say(f"read {rows:,} rows, {rows / (now - started):,.0f} rows/s")

    return tell


def _tell(settings: JudgeSettings, figures: dict[str, Any]) -> None:
    """Prints what came of a log, and what to do next."""
    say(f"{figures['rows']:,} rows, {figures['clicks']:,} clicks; split by {figures['split']['by']}")
    table = Table()
    columns = ["clicks", "queries", "pairs", "not_relevant", "seen", "unseen", "recurring"]
    # what is the same everywhere leaves room on a terminal
    if not any(split["not_relevant"] for split in figures["splits"].values()):
        columns.remove("not_relevant")
    for name in ("part", *columns):
        table.add_column(name.replace("_", " "), justify="left" if name == "part" else "right")
    for name, split in figures["splits"].items():
        table.add_row(name, *(f"{split[key]:,}" if key in split else "" for key in columns))
    show(table)
    show(scores_table(figures["splits"]))
    rows = [f"{cause}: {count:,}" for cause, count in figures["left_out"].items()]
    say(f"rows left out: {'; '.join(rows) or 'none'}")
    pairs = [
        f"{name} {cause}: {count:,}"
        for name, split in figures["splits"].items()
        for cause, count in split["left_out"].items()
    ]
    say(f"pairs left out: {'; '.join(pairs) or 'none'}")
    found = figures["propensities"]
    by_rank = found["by_rank"] or []
    more = ", ..." if len(by_rank) > SHOWN_RANKS else ""
    shown = f": {', '.join(f'{p:.3f}' for p in by_rank[:SHOWN_RANKS])}{more} at ranks 1, 2, ..." if by_rank else ""
    say(f"propensities: {found['source']}{shown}")
    if rates := figures["click_rates"]:
        say(
            f"clicks a look: {rates['relevant']:.3f} on relevant documents, {rates['other']:.3f} on others (mistakes); "
            f"{rates['share']:.1%} of the pairs that were shown are relevant"
        )
    else:
        say("clicks by mistake are not told from others (min_certainty has no effect)")
    if "test" in figures["splits"]:
        say(
            "seen: a query with a relevant document that train (or dev) has, too; recurring: one that has the very "
            "pair of query and document. Only unseen queries say how new documents will do"
        )
    _advise(settings, figures["splits"], figures["dim"])


def _advise(settings: JudgeSettings, splits: dict[str, Any], dim: int) -> None:
    queries = splits["train"]["queries"]
    if queries < MIN_TRAIN_QUERIES:
        warn(f"train has {queries} queries; a training needs {MIN_TRAIN_QUERIES}: take a longer log")
    if "test" in splits and splits["test"]["unseen"] < LEAST_QUERIES:
        warn(
            f"only {splits['test']['unseen']} test queries are unseen: what an evaluation says is of documents that "
            "were clicked before"
        )
    dims = ",".join(str(dim // part) for part in (2, 4, 8) if dim // part)
    words = ["smec", "train", "--data", settings.data]
    for name, value in _other_names(settings).items():
        words += ["--set", f"columns.{name}={value}"]
    say(f"next: {shlex.join([*words, '--dims', dims or str(dim), '--out', 'model'])}")


def _other_names(settings: JudgeSettings) -> dict[str, str]:
    """Names of the dataset's columns that were given."""
    return settings.columns.of_data.model_dump(exclude_defaults=True)
