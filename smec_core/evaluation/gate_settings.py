"""Settings of the gate, without what judging imports: every `smec retrain --help` reads them."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from smec_core.config import VERSION_NAME, Settings


class GateSettings(Settings):
    """What a challenger must reach. Differences are of mean nDCG@10 over the gate queries."""

    model_config = ConfigDict(allow_inf_nan=False)

    fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the judged queries, by a hash of their id, that no training learns from and that decide here."""
    min_queries: int = Field(30, ge=2)
    """With fewer gate queries nothing is trained."""
    min_gain: float = Field(0.0, ge=0, le=1)
    """Least gain on the champion, mean over the dims."""
    max_loss: float = Field(0.01, ge=0, le=1)
    """The most that any dim may lose against the champion, the anchor, PCA, or the frozen embeddings cut to that dim:
    over all gate queries; and, where they are at least min_queries, over seen queries, unseen queries, and each segment
    (`by`)."""
    by: str | None = Field(None, min_length=1)
    """Column of the queries table, as language: the gate queries of each of its values are held to max_loss by
    themselves, where they are min_queries, so that no mean hides who loses. Default: no column."""
    significance: float = Field(0.05, gt=0, le=1)
    """The gain on the champion must have a p of at most this, in a paired randomisation test; 1: no test."""
    max_below: float = Field(0.0, ge=0, le=1)
    """The most that the mean over the dims may lie below that of PCA or truncation."""
    max_drop: float = Field(0.25, ge=0, le=1)
    """The most that the champion itself may lose, mean over the dims and as a share of what it reached, on gate queries
    that it was promoted by: more than that speaks against the new data, and nothing is released."""
    max_old_loss: float = Field(0.02, ge=0, le=1)
    """With `compatible`: the most that new queries may lose on old documents against old queries, mean over dims."""
    anchor: Annotated[str | None, VERSION_NAME] = Field(None, coerce_numbers_to_str=True)
    """Published version, as v0007: of the releases since that one the best is the anchor, with which challengers are
    compared as well, so that small losses do not add up. Default: the best of all. Name the version in force to begin
    anew, where judgements or documents have changed for good."""

    def identity(self) -> dict[str, Any]:
        """What of it decides; as before where what came later is not used."""
        return self.model_dump(mode="json", exclude={name for name in ("anchor", "by") if getattr(self, name) is None})
