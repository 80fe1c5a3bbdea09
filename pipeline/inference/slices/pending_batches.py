"""The batches of one slice that are still to be predicted, and what predicting took."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass

import numpy as np

from pipeline.preprocessing.model_input import Arrays, BatchLimits, Input, Rows


class Batches:
    """The batches of a slice that have not been started."""

    def __init__(self, seen: Input, inputs: Arrays, todo: Rows, limits: BatchLimits) -> None:
        self._divide = functools.partial(seen.batches, inputs)
        self._limits = limits
        self._left = deque(self._divide(todo, limits))

    def __bool__(self) -> bool:
        return bool(self._left)

    def take(self, limits: BatchLimits) -> Rows:
        """Return the next batch; divides what is left again if a batch had no room in memory."""
        if limits != self._limits:
            self._limits = limits
            self._left = deque(self._divide(np.concatenate(self._left), limits))
        return self._left.popleft()


@dataclass
class Timer:
    """Busy seconds and tokens of one slice."""

    transfer_s: float = 0.0
    predict_s: float = 0.0
    launch_s: float = 0.0
    """Of the host, beside a GPU."""
    num_tokens: int = 0
    """Tokens of the rows of finished batches, and those that the model got, with padding."""
    num_padded: int = 0

    def add(self, transfer_s: float, predict_s: float, launch_s: float) -> None:
        self.transfer_s += transfer_s
        self.predict_s += predict_s
        self.launch_s += launch_s
