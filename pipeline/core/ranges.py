"""Ascending row numbers kept as ranges, so that a mask over a million rows stays small."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Ranges(Sequence[int]):
    """Distinct integers in ascending order."""

    bounds: tuple[int, ...]
    """Start and end of each range in turn, ascending: (0, 3, 5, 6) is 0, 1, 2 and 5."""

    @classmethod
    def of(cls, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Ranges:
        """Return some ascending numbers as ranges."""
        if isinstance(numbers, Ranges):
            return numbers
        if isinstance(numbers, range) and numbers.step == 1:
            return cls((numbers.start, numbers.stop) if numbers else ())
        values = np.asarray(numbers, np.int64)
        if not len(values):
            return cls(())
        cuts = np.flatnonzero(np.diff(values) != 1)
        starts, ends = values[np.append(0, cuts + 1)], values[np.append(cuts, len(values) - 1)] + 1
        return cls(tuple(np.column_stack((starts, ends)).ravel().tolist()))

    @classmethod
    def of_mask(cls, mask: npt.NDArray[np.bool_]) -> Ranges:
        """Return the indices at which a mask (N,) is true."""
        edges = np.diff(mask.astype(np.int8), prepend=0, append=0)
        return cls(tuple(np.flatnonzero(edges).tolist()))

    @classmethod
    def in_at_least(cls, count: int, parts: Iterable[Ranges]) -> Ranges:
        """Return the numbers that `count` of several ranges have: 1 is any, 2 of 2 are both."""
        bounds = np.concatenate([np.zeros((0, 2), np.int64), *(_pairs(part) for part in parts)])
        at, steps = bounds.T.ravel(), np.repeat([1, -1], len(bounds))
        order = np.lexsort((-steps, at))  # ranges that touch are joined
        is_inside = np.cumsum(steps[order]) >= count
        edges = at[order][np.flatnonzero(np.diff(is_inside, prepend=False))].reshape(-1, 2)
        return cls(tuple(edges[edges[:, 0] < edges[:, 1]].ravel().tolist()))

    def ranges(self) -> Iterator[range]:
        """Yield the ranges in order."""
        return itertools.starmap(range, zip(self.bounds[::2], self.bounds[1::2], strict=True))

    def mask_of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell which numbers are among these, (N,) -> bool (N,)."""
        mask: npt.NDArray[np.bool_] = np.searchsorted(self.bounds, numbers, "right") % 2 == 1
        return mask

    def within(self, start: int, stop: int) -> Ranges:
        """Return the numbers n with start <= n < stop."""
        return self[bisect_left(self, start) : bisect_left(self, stop)]

    @cached_property
    def _counts(self) -> list[int]:
        """How many numbers are in the ranges before each, and in all."""
        return [0, *itertools.accumulate(len(numbers) for numbers in self.ranges())]

    def __len__(self) -> int:
        return self._counts[-1]

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Ranges: ...

    def __getitem__(self, index: int | slice) -> int | Ranges:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return Ranges.of([self[at] for at in range(start, stop, step)])
            return self._slice(start, stop)
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        number = bisect_right(self._counts, at) - 1
        return self.bounds[2 * number] + at - self._counts[number]

    def _slice(self, start: int, stop: int) -> Ranges:
        if stop <= start:
            return Ranges(())
        first = bisect_right(self._counts, start) - 1
        last = bisect_left(self._counts, stop)
        bounds = list(self.bounds[2 * first : 2 * last])
        bounds[0] += start - self._counts[first]
        bounds[-1] -= self._counts[last] - stop
        return Ranges(tuple(bounds))

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self.ranges())

    def __contains__(self, number: object) -> bool:
        # An end is no member: it lies at an even place after the starts and ends before it.
        return isinstance(number, int) and bisect_right(self.bounds, number) % 2 == 1


EMPTY = Ranges(())


def _pairs(ranges: Ranges) -> npt.NDArray[np.int64]:
    """Return the start and end of each range, (N, 2)."""
    return np.array(ranges.bounds, np.int64).reshape(-1, 2)
