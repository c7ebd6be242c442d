"""The encoders of text: sentence-transformers models, by name or path."""

import os
from typing import Any

from smec_core.errors import InputError, first_line


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that no encoder may be fetched."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def load_encoder(name: str, device: str, offline: bool, revision: str | None = None) -> Any:
    """Loads a sentence-transformers model, of a name on the hub at a commit where one is given.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()
    try:
        return SentenceTransformer(name, device=device, revision=revision, local_files_only=offline)
    # whatever the many loaders behind this one raise, what the user can do about it is the same
    except Exception as error:
        where = "this folder or in the local cache (HF_HUB_OFFLINE is set)" if offline else "this folder or on the hub"
        raise InputError(f"encoder {name}: no sentence-transformers model in {where}: {first_line(error)}") from error
