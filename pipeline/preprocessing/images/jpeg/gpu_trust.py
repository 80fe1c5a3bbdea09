"""Whether pixels that a GPU decoded are those of the CPU, found out on some rows of every process.

The first rows of an actor are decoded both ways, and one in a thousand later. Rounding and the
filter of the colours differ a little between decoders; memory that was overwritten while it was
read, or a card that computes wrongly, differs by much. Then the CPU decodes from that row on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

FIRST_ROWS, ONE_IN = 16, 1000
MAX_MEAN_LEVELS = 4.0
"""How far the pixels of an image may be off in the mean, of 255."""
_FAR_LEVELS, _MAX_FAR = 48, 0.02
"""If a part of it is wrong: so large a share of its values may be off by more than so much."""

Pixels = npt.NDArray[np.uint8]


class Trust:
    """Counts the rows that a decoder has done, and remembers that it was wrong once."""

    def __init__(self) -> None:
        self._done = 0
        self.is_lost = False

    def is_due(self) -> bool:
        """Tell whether the next row is to be decoded on the CPU as well; counts it."""
        self._done += 1
        return self._done <= FIRST_ROWS or self._done % ONE_IN == 0

    def hold(self, found: Pixels, expected: Pixels) -> bool:
        """Compare the pixels of a row by both ways, each (H, W, C); say so once if they differ."""
        off = np.abs(found.astype(np.int16) - expected)
        mean, far = float(off.mean()), float((off > _FAR_LEVELS).mean())
        is_near = mean <= MAX_MEAN_LEVELS and far <= _MAX_FAR
        if not is_near and not self.is_lost:
            self.is_lost = True
            log.warning(
                "transform.jpeg_decoder = gpu: the GPU decoded an image otherwise than the CPU (by "
                "%.1f of 255 in the mean, %.0f%% of its values by more than %d): this worker "
                "decodes on the CPU from here on",
                *(mean, 100 * far, _FAR_LEVELS),
            )
        return is_near


@functools.cache
def trust_in(decode: Callable[..., object]) -> Trust:
    """Return this process's trust in a decoder."""
    return Trust()
