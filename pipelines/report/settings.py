"""What `smec report` takes."""

from pipelines.storage.model_folder import LocalPath
from smec_core.config import Settings


class ReportSettings(Settings):
    """Write one HTML page about a model, or about a study of smec tune; opens offline.

    A model's shows quality against dims, convergence, importance of dims and settings; a study's parallel
    coordinates, importance of settings, quality against seconds, and every trial.

    Example: smec report models/products --out report.html
    """

    folder: str
    """Model folder, as `smec train --out` wrote it, or a study's, as `smec tune --out` did."""
    out: LocalPath
    """HTML file to write; one that is there is replaced."""
