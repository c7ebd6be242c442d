"""What `smec verify` takes."""

from smec_core.config import Settings


class VerifySettings(Settings):
    """Compares every byte below a folder with the checksums that are kept beside it.

    Example: smec verify vectors

    Works on what smec writes: model folders, published folders, the state of runs, studies and series (--storage), and
    datasets of smec ingest. Jobs check what they read by themselves; large files by size and stamp alone if these are
    unchanged since writing. Run this after a disk has failed, or after a backup was restored.
    """

    path: str
    """Folder or URI."""
