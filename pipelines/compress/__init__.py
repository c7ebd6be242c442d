"""Compresses embeddings with a model into versions of a published folder: `smec compress`."""

from pipelines.compress.job import CompressSettings, compress, run

__all__ = ["CompressSettings", "compress", "run"]
