"""The model card that every stored model carries."""

from typing import Any

from smec_core.data.seen import parts_of
from smec_core.shown import markdown

HUB_HEAD = """---
library_name: smec-ray
tags:
- embeddings
- feature-extraction
- matryoshka
- smec
---

"""
"""What the Hugging Face Hub reads of a card."""


def model_card(config: dict[str, Any], metrics: dict[str, Any], place: str = "this/folder") -> str:
    """Markdown for a model folder's README.md, from its config.json and metrics.json; `place` is the folder's."""
    dims = config["dims"]
    evaluation = metrics.get("evaluation", {})
    lines = [
        "# SMEC embedding adapter",
        "",
        f"Compresses {config['input_dim']}-dim embeddings into one nested vector, usable at "
        f"{', '.join(map(str, dims))} dims.",
        "",
        "```python",
        "import smec_core",
        "",
        f'vectors = smec_core.load("{place}").encode(embeddings, dim={dims[-1]})  # unit norm, (N, {dims[-1]})',
        "```",
        "",
        "Cut a stored vector to any of the dims above and normalise it again; documents and queries need the same dim.",
        "",
    ]
    measures = [name for name in ("ndcg@10", "recall@100", "mrr@10", "neighbour_recall@10") if name in evaluation]
    if measures:
        split = f" on {markdown(evaluation.get('split') or 'nearest documents')}"
        split += ", which it has learnt from" if evaluation.get("learnt") else ""
        lines += [f"## Quality{split}", "", "| dims | " + " | ".join(measures) + " |"]
        lines += ["|---" * (len(measures) + 1) + "|"]
        lines += [
            f"| {dim} | " + " | ".join(f"{evaluation[name][str(dim)]:.4f}" for name in measures) + " |" for dim in dims
        ]
        lines.append("")
    if parts := parts_of(evaluation):
        lines += [
            f"{measures[0]}: training has learnt from a relevant document of seen queries, from none of unseen ones; "
            "unseen-documents-only leaves the documents that it has learnt from out of the search.",
            "",
            "| dims | " + " | ".join(f"{label}, {part['queries']} queries" for label, part in parts.items()) + " |",
            "|---" * (len(parts) + 1) + "|",
        ]
        rows = {dim: [f"{part[measures[0]][str(dim)]:.4f}" for part in parts.values()] for dim in dims}
        lines += [*(f"| {dim} | {' | '.join(cells)} |" for dim, cells in rows.items()), ""]
    data = config.get("data", {})
    versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    base, champion = config.get("base"), config.get("warm_start")
    lines += [
        "## Training",
        "",
        *([f"- extends model {base['fingerprint']}: its dims keep their results"] if base else []),
        *([f"- started from model {champion['fingerprint']}"] if champion else []),
        f"- data fingerprint: {data.get('fingerprint', 'unknown')}",
        f"- seed: {config.get('train', {}).get('seed', 'unknown')}",
        f"- versions: {markdown(versions)}",
        f"- created: {markdown(config.get('created', 'unknown'))}",
        "- method: SMEC, Sequential Matryoshka Embedding Compression (EMNLP 2025, arXiv 2510.12474)",
        "",
    ]
    return "\n".join(lines)
