"""The encoder of `smec ingest`: which weights a name stands for, and encoding with its prompts."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.runtime.text_encoder import hub_is_offline, load_encoder
from smec_core.checksums import sha256_of
from smec_core.errors import InputError, SmecError, first_line

# what one of them needs to be a model; sentence-transformers takes those of transformers, too
MODEL_FILES = ("modules.json", "config.json")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class Encoder(NamedTuple):
    """A sentence-transformers model, down to its bytes.

    `fingerprint` is `commit:...` of a model on the hub, `sha256:...` over the files of a folder.
    """

    name: str
    fingerprint: str
    is_offline: bool

    @classmethod
    def find(cls, name: str) -> "Encoder":
        """Resolves a name, without loading or fetching weights.

        Args:
            name: a folder, or a name on the Hugging Face hub; without an organisation that of sentence-transformers.

        Raises:
            InputError: there is no such model.
        """
        is_offline = hub_is_offline()
        folder = Path(name)
        if folder.is_dir():
            if not any((folder / file).is_file() for file in MODEL_FILES):
                raise InputError(
                    f"encoder {name}: no sentence-transformers model in this folder; it holds neither "
                    f"{' nor '.join(MODEL_FILES)}"
                )
            return cls(str(folder.absolute()), _fingerprint(folder), is_offline)
        name = name if "/" in name else f"sentence-transformers/{name}"
        return cls(name, f"commit:{_commit(name, is_offline)}", is_offline)

    def load(self, device: str) -> Any:
        """Loads it: a SentenceTransformer.

        Raises:
            InputError: it cannot be loaded.
            SmecError: this machine has another model under the name.
        """
        method, _, commit = self.fingerprint.partition(":")
        is_folder = method == "sha256"
        if is_folder:
            self._check(_fingerprint(Path(self.name)))
        # the tokeniser's own threads would take the cores of the actors beside this one
        if device == "cpu":
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            import torch

            # an actor has one CPU, and the last bits of a vector may depend on how many threads made it
            torch.set_num_threads(1)
        model = load_encoder(self.name, device, self.is_offline, None if is_folder else commit)
        # models that are none of transformers have no config
        loaded = getattr(model.config, "_commit_hash", None)
        if not is_folder and loaded is not None:
            self._check(f"commit:{loaded}")
        return model

    def _check(self, found: str) -> None:
        if found != self.fingerprint:
            raise SmecError(
                f"encoder {self.name}: a worker has other files under this name ({found[:19]}) than the driver "
                f"({self.fingerprint[:19]}); give all machines the same, then run again"
            )


def encode(model: Any, texts: Sequence[str], is_query: bool, prompt: str | None, batch_size: int) -> np.ndarray:
    """Vectors of texts, in their order, shape (N, D), float32, normalised.

    sentence-transformers sorts by length what one call gets, so that a batch holds little padding.

    Args:
        model: a SentenceTransformer.
        texts: queries or documents.
        is_query: which; it decides the prompt, and the route through models that have two.
        prompt: text to put before each; by default what the model's configuration names for these.
        batch_size: texts at a time.
    """
    name = None
    if prompt is None and not is_query:
        # an encoder that names a prompt `passage` has an empty one, `document`, by default, which would win
        name = next((name for name in DOCUMENT_PROMPTS if model.prompts.get(name)), None)
    encode_kind = model.encode_query if is_query else model.encode_document
    vectors_ND = encode_kind(
        list(texts),
        prompt=prompt,
        prompt_name=name,
        batch_size=batch_size,
        normalize_embeddings=True,
        show_progress_bar=False,
    )
    return np.asarray(vectors_ND).astype(np.float32, copy=False)


def _commit(name: str, is_offline: bool) -> str:
    """The commit that a model's main branch is at: on the hub, or in the local cache where the hub is away."""
    from huggingface_hub import resolve_revision

    # the folder that sentence-transformers looks in, too
    cache = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    try:
        return str(resolve_revision(name, cache_dir=cache, local_files_only=is_offline).resolved)
    # a name that cannot be one, an unknown or private one, a network that is away: the cure is in the name or the text
    except Exception as error:
        where = "in the local cache (HF_HUB_OFFLINE is set)" if is_offline else "on the hub"
        raise InputError(
            f"encoder {name}: no sentence-transformers model in such a folder or {where}: {first_line(error)}"
        ) from error


def _fingerprint(folder: Path) -> str:
    """Hash of names and bytes of a model folder's files; hidden files and model cards change no vector."""
    total = hashlib.sha256()
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names):
        if name.endswith(".md") or any(part.startswith(".") for part in name.split("/")):
            continue
        total.update(f"{name}\0{sha256_of(names[name])}\n".encode())
    return f"sha256:{total.hexdigest()}"
