"""Pages about models and studies: `smec report`."""

from pipelines.report.job import ReportSettings, run

__all__ = ["ReportSettings", "run"]
