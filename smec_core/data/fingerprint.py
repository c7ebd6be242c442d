"""Hashes of what a dataset holds: of ids, of rows, and of all of it.

Shapes: N rows, D dims, H pairs of dims.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs

_HASH_KEY = "smec row ids 001"
_READ_BYTES = 1 << 22


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """64-bit hashes (N) of ids, the same everywhere."""
    hashes: np.ndarray = pd.util.hash_array(ids.to_numpy(zero_copy_only=False), hash_key=_HASH_KEY, categorize=False)
    return hashes


def _mix(number_N: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, which spreads neighbours over all 64-bit numbers."""
    number_N = (number_N ^ (number_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number_N = (number_N ^ (number_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = number_N ^ (number_N >> np.uint64(31))
    return mixed


def keys_of(hash_N: np.ndarray) -> np.ndarray:
    """Random keys (N) of rows with such hashes: those with the lowest keys are the sample."""
    # not the hashes themselves, by which much else may be chosen
    return _mix(hash_N + np.uint64(1))


def row_hashes(hash_N: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """64-bit hashes (N) of rows: of their ids' hashes, and of the bits of their vectors."""
    if vectors_ND.shape[1] % 2:
        vectors_ND = np.pad(vectors_ND, ((0, 0), (0, 1)))
    pairs_NH = np.ascontiguousarray(vectors_ND).view(np.uint64)
    weight_H = np.random.default_rng(0).integers(0, 2**64, pairs_NH.shape[1], np.uint64)
    # the high bits, which are those that differ between numbers, count for the low ones, too
    return _mix(hash_N + (pairs_NH ^ (pairs_NH >> np.uint64(32))) @ weight_H)


def check_of(hash_N: np.ndarray, vectors_ND: np.ndarray) -> int:
    """Sum of the hashes of some rows, modulo 2^64; their ids have such hashes."""
    return int(row_hashes(hash_N, vectors_ND).sum(dtype=np.uint64))


def are_in(hash_N: np.ndarray, sorted_S: np.ndarray) -> np.ndarray:
    """Whether each hash is one of some, which are ascending."""
    if not len(sorted_S):
        return np.zeros(len(hash_N), bool)
    found: np.ndarray = sorted_S[np.searchsorted(sorted_S, hash_N).clip(max=len(sorted_S) - 1)] == hash_N
    return found


def content_fingerprint(told: Sequence[str], filesystem: pafs.FileSystem, qrels: Sequence[str]) -> str:
    """Hash (16 hex digits) of descriptions of the tables, and of the files of judgements.

    Args:
        told: the descriptions.
        filesystem: where the judgements lie.
        qrels: paths of the judgements, in the folder of that name.
    """
    total = hashlib.blake2b("\n".join(told).encode(), digest_size=8)
    for path in qrels:
        # where the dataset lies does not count
        total.update(path[path.rindex("/qrels/") :].encode() + b"\0")
        with filesystem.open_input_stream(path, buffer_size=0) as stream:
            while chunk := stream.read(_READ_BYTES):
                total.update(chunk)
    return total.hexdigest()
