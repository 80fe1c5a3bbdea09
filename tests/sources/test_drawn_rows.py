"""Rows are drawn by their content with a probability, the same in any order and batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline.sources.lookup import are_drawn

SEED, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"a plan", b"another"))


def hashes_of(num_rows: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (num_rows, 16), np.uint8)


@pytest.mark.parametrize("probability", [0.001, 0.01, 0.5])
def test_rows_are_drawn_by_their_content_with_their_probability(probability: float):
    hashes = hashes_of(400_000)
    for order in (slice(None), np.argsort(hashes[:, 0], kind="stable")):
        chosen = are_drawn(hashes[order], probability, SEED)
        expected = probability * len(hashes)
        assert abs(chosen.sum() - expected) < 5 * np.sqrt(expected)
    one, other = (are_drawn(hashes, probability, seed) for seed in (SEED, OTHER))
    both = (one & other).sum()
    assert both < 4 * probability**2 * len(hashes) + 10, "another plan draws others"
    pieces = [are_drawn(each, probability, SEED) for each in np.array_split(hashes, 7)]
    assert np.array_equal(np.concatenate(pieces), one)
    assert are_drawn(hashes[:0], probability, SEED).shape == (0,)
    assert are_drawn(hashes[:9], 1.0, SEED).all()
    assert not are_drawn(hashes[:9], 0.0, SEED).any()
