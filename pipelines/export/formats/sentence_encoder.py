"""A model behind the encoder of text it was trained for: one sentence-transformers model that gives nested vectors.

Shapes: N texts, D input dims, d dims exported, E dims that the encoder's modules give.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from pipelines.runtime.text_encoder import hub_is_offline, load_encoder
from smec_core.errors import InputError
from smec_core.shown import markdown

TEXTS = [
    "salt",
    "Small carnivores that purr when they are content.",
    "Le chat dort sur le canapé.",
    "In which year did the first satellite reach its orbit, and how long did it stay there?",
    "def area(radius): return math.pi * radius ** 2",
    "The sea covers more than two thirds of the earth's surface. " * 20,
]


def write(matrix_dD: np.ndarray, origin: dict[str, Any], path: Path, encoder_name: str) -> np.ndarray:
    """Saves the encoder, in float32, with a product with the matrix and a division by the length at its end.

    Returns:
        What the encoder itself makes of TEXTS, (N, D).

    Raises:
        InputError: there is no such encoder, or its vectors do not have the D dims that the model takes.
    """
    # float32, since the matrix would be rounded to whatever the encoder is in
    encoder = load_encoder(encoder_name, "cpu", hub_is_offline()).float()
    kept, input_dim = matrix_dD.shape
    x_ND = np.asarray(encoder.encode(TEXTS, show_progress_bar=False))
    if x_ND.shape[1] != input_dim:
        raise InputError(
            f"encoder: {encoder_name} gives {x_ND.shape[1]} dims, but the model takes {input_dim}; name the encoder "
            "that made the vectors it was trained on"
        )
    # an encoder may be set to cut its vectors; its modules do not, and what it cuts off must not count
    encoder.truncate_dim = None
    width = len(encoder.encode(TEXTS[0], show_progress_bar=False))
    weight_dE = F.pad(torch.from_numpy(matrix_dD), (0, width - input_dim))
    encoder.append(Dense(width, kept, bias=False, activation_function=torch.nn.Identity(), init_weight=weight_dE))
    encoder.append(Normalize())
    encoder.similarity_fn_name = "cosine"
    encoder.save(str(path), create_model_card=False, safe_serialization=True)
    (path / "README.md").write_text(_card(origin), encoding="utf-8")
    return x_ND


def encode(path: Path) -> np.ndarray:
    """What the saved model makes of TEXTS, (N, d)."""
    return np.asarray(load_encoder(str(path), "cpu", offline=True).encode(TEXTS, show_progress_bar=False))


def _card(origin: dict[str, Any]) -> str:
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# Nested sentence embeddings

The encoder {markdown(origin["encoder"])}, then a SMEC adapter: unit vectors of {origin["dim"]} dims, usable at
{", ".join(map(str, origin["dims"]))} dims. A cut vector must be normalised again:

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("this/folder", truncate_dim={origin["dims"][-1]})
vectors = encoder.encode(["a text"], normalize_embeddings=True)
```

Encode queries and documents both like this. The adapter's fingerprint is {origin["model_fingerprint"]}; the encoder's
licence goes with it.
"""
