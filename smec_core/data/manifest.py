"""The file that makes a published version or an ingested dataset finished, and says what is in it.

Both `smec_core` and the jobs look for it, so its names lie here.
"""

import pyarrow.fs as pafs

MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files pass over names that begin with an underscore."""
EARLIER_MANIFEST = "manifest.json"
"""The name that earlier versions gave it."""


def find_manifest(filesystem: pafs.FileSystem, folder: str) -> str | None:
    """Path of the manifest in a folder, by its name or its earlier one; None where there is none."""
    infos = filesystem.get_file_info([f"{folder}/{name}" for name in (MANIFEST, EARLIER_MANIFEST)])
    return next((info.path for info in infos if info.type == pafs.FileType.File), None)
