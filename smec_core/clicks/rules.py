"""The rules by which clicks become judgements."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from smec_core.clicks.rows import parse_time
from smec_core.config import Settings


def _check_time(text: str) -> str:
    try:
        parse_time(text)
    except ValueError:
        raise ValueError("must be a time, as 2026-01-31, 2026-01-31T12:00:00 or 2026-01-31T12:00:00Z") from None
    return text


class ClickRules(Settings):
    """What decides the judgements that a log gives."""

    test_from: Annotated[str, AfterValidator(_check_time)] | None = Field(None, json_schema_extra={"metavar": "TIME"})
    """Clicks from this time on are test, as 2026-01-31T12:00:00Z: the future of what is learnt. A time without a
    zone is one of UTC where the log has zones."""
    test_share: float = Field(0.2, ge=0, lt=1)
    """Where there is no test_from: share of the clicks that are test, the last ones; of a log without timestamps, share
    of the queries, by a hash of their id."""
    dev_share: float = Field(0.0, ge=0, lt=1)
    """The same for dev, the clicks before those of test. By default there is none, and `smec train` takes some of
    the train queries instead."""
    seed: int = Field(0, ge=0)
    """Of the hash that splits a log without timestamps."""
    min_clicks: int = Field(1, ge=1)
    """Pairs of query and document with fewer clicks in a split are left out of it."""
    min_impressions: int = Field(1, ge=1)
    """Pairs that were shown less often in a split are left out of it; of logs with `clicked` only."""
    min_certainty: float = Field(0.5, ge=0, lt=1)
    """Pairs are left out whose clicks are those of a relevant document with a smaller probability than this, and else
    mistakes; of logs with `rank` and `clicked` only, which tell how often each kind is clicked. 0 keeps all."""
    min_share: float = Field(0.0, ge=0, le=1)
    """Pairs with a weight below this share of the highest of their query are left out: for logs that do not tell
    mistakes in another way."""
    weight: Literal["propensity", "clicks"] = "propensity"
    """propensity: where the log has ranks, a click counts 1 / (probability that the document was looked at), so that
    what is shown further down is not thought less relevant. clicks: each counts 1."""
    eta: float | None = Field(None, ge=0, le=5)
    """Position bias: rank k is looked at with a probability of (1 / k)^eta. By default it is estimated from documents
    that the log shows at several ranks for the same query, which needs `clicked`."""
    max_weight: float = Field(10.0, ge=1)
    """Most that a click counts: fewer clicks with a high weight would be noise."""
    min_skips: float | None = Field(None, gt=0)
    """Pairs that were never clicked and, as propensities say, looked at this often get score 0: not relevant, a hard
    negative. By default none do: who does not click may have found the answer before, or in the title."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of the log's rows that may name ids which DATA does not hold; they are counted and left out."""
    max_bad_rows: float = Field(0.0, ge=0, le=1)
    """Share of the log's rows that may be bad (null, negative, no time, ...); they are counted and left out. By
    default the first ends the command, with its file and row."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """Of timestamps that are whole numbers: what they count since 1970."""

    @model_validator(mode="after")
    def _shares_leave_some(self) -> Self:
        if self.test_from is None and self.test_share + self.dev_share >= 1:
            raise ValueError("test_share and dev_share leave nothing to train on; their sum must be below 1")
        return self

    @model_validator(mode="after")
    def _one_test_is_asked_for(self) -> Self:
        if self.test_from is not None and "test_share" in self.model_fields_set:
            raise ValueError("test_from and test_share both say what is test; leave one out")
        return self

    @model_validator(mode="after")
    def _weights_are_of_use(self) -> Self:
        of_no_use = self.model_fields_set & {"eta", "max_weight", "min_certainty", "min_skips"}
        if self.weight == "clicks" and of_no_use:
            raise ValueError(f"weight=clicks looks at no propensities, so {min(of_no_use)} does nothing; leave one out")
        return self
