"""Where a job may not write: among the files of the data that it reads, where readers would take them for data."""

from collections.abc import Mapping, Sequence

from smec_core.data.tables import ENDINGS, QRELS, TABLES
from smec_core.data.uri import is_within, join_uri, public_uri
from smec_core.errors import InputError


def check_apart(places: Mapping[str, str | None], data: Sequence[str]) -> None:
    """Refuses places within the tables or the judgements of datasets; beside them, in a dataset's folder, is well.

    Args:
        places: folders to write to, by the setting that names them; None for one that is not given.
        data: the datasets.

    Raises:
        InputError: one lies within a table, which nobody could read any more.
    """
    for uri in data:
        tables = [join_uri(uri, f"{name}{ending}") for name in TABLES for ending in ("", *ENDINGS)]
        _refuse_within(places, [*tables, join_uri(uri, QRELS)])


def check_apart_from_table(key: str, place: str, table: str) -> None:
    """Refuses a place below the one table that a job reads.

    Its own folder is not refused here: it may be a published one, to which a version is added.

    Raises:
        InputError: it lies there.
    """
    if not (is_within(place, table) and is_within(table, place)):
        _refuse_within({key: place}, [table])


def _refuse_within(places: Mapping[str, str | None], folders: Sequence[str]) -> None:
    for key, place in places.items():
        for folder in folders:
            if place is not None and is_within(place, folder):
                raise InputError(
                    f"{key}: {public_uri(place)} lies in {public_uri(folder)}, where it would be taken for data; "
                    "name a folder outside"
                )
