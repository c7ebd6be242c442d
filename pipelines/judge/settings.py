"""What `smec judge` takes."""

from smec_core.clicks.log import ClickColumns
from smec_core.clicks.rules import ClickRules


class JudgeSettings(ClickRules):
    """Make judgements (qrels) of a click log, for data that has corpus and queries.

    CLICKS is a Parquet, CSV or JSON-lines file, or a folder or URI of them, with the
    columns query_id and doc_id, and as many of these as it has: count (events that a row stands for, where they are
    added up: clicks, sales), timestamp (without it the split is by queries and not by time), rank (where the document
    was shown, from 1) and clicked (1, or 0 where it was shown and not clicked; without it every row is a click).
    --set columns.query_id=search names another.

    DATA/qrels gets train.parquet, test.parquet (the last fifth of the clicks, or from --test-from on) and, with
    dev_share, dev.parquet. A score is the number of clicks. Where the log has ranks and what was shown at them, a
    click counts more the less likely the document was to be looked at, and pairs that are more likely clicked by
    mistake than relevant are left out (min_certainty). Where it has ranks alone, give eta; where it has counts alone,
    min_clicks and min_share leave out what is clicked too rarely.

    The first bad row (a null, a negative count, a time without the zone that others have, ...) ends the command with
    its file, row and column, unless max_bad_rows lets some be left out. The result depends neither on the order of
    the rows nor on how they are cut into files. Memory grows with the pairs of query, document and rank, not with rows.

    Judgements that are there already are replaced only if smec judge made them and nobody has changed them, or with
    --replace. Where they are those of the same log, data and settings, nothing is done.

    Example: smec judge clicks/ data/products --test-from 2026-01-24

    Example: smec judge sales.csv data/products --set columns.query_id=search --set columns.count=sold
    """

    clicks: str
    """The log: a file, folder or URI."""
    data: str
    """Dataset folder or URI with corpus and queries; gets qrels."""
    replace: bool = False
    """Replace judgements that smec judge did not make, or that were changed since; they are gone then."""
    columns: ClickColumns = ClickColumns()
    """What the columns are called where they have other names: --set columns.query_id=search."""
