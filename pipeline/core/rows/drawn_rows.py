"""Draw rows by the hash of their content: each with one probability, in any order and batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_WORD_BYTES = 8


def are_drawn(
    hashes: npt.NDArray[np.uint8], probability: float, seed: str
) -> npt.NDArray[np.bool_]:
    """Draw rows; of equal rows all or none, and for another seed others.

    Args:
        hashes: uint8 (N, 16).
        probability: Of each row, from 0 to 1.
        seed: 16 hexadecimal digits or more: the fingerprint of the whole plan, so that each run of
            it draws the same rows, and the next partition others.

    Returns:
        bool (N,).
    """
    if probability >= 1.0:
        return np.ones(len(hashes), bool)
    words = np.ascontiguousarray(hashes[:, -_WORD_BYTES:]).view("<u8").reshape(-1)
    mixed = (words ^ np.uint64(int(seed[:16], 16))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed ^ (mixed >> np.uint64(32))) < np.uint64(int(probability * 2**64))
