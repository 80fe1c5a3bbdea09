"""When an engine makes its reference check: once, with the first slice that has rows for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

from pipeline.core.cache.node_cache import claim_once_per_node
from pipeline.core.figures.counters import Counters
from pipeline.core.figures.slice_figures import Comparison, SliceFigures
from pipeline.inference.devices.device_model import DeviceModel


class ReferenceCheck:
    """The check of one engine."""

    def __init__(self, model: DeviceModel) -> None:
        """Take the model that is checked."""
        self._model, self._choosing = model, threading.Lock()
        self.is_awaited = model.config.limits is not None
        """Whether it takes its rows from the next slice."""

    def make_once(
        self, num_rows: int, count_agreeing: Callable[[], int], counters: Counters
    ) -> None:
        """Make the check, if it is awaited and there are rows for it.

        Args:
            num_rows: The rows that are compared.
            count_agreeing: Compares them; if it raises, a later slice is compared.
            counters: Gets the figure `reference_check`.
        """
        with self._choosing:  # another slice in flight may be the first
            if not num_rows or not self.is_awaited:
                return
            self.is_awaited = False
        name = f"reference-check-{self._model.config.run_id}"
        try:
            # Each actor with a GPU does it, as cards may be sick, and one per CPU node.
            if self._model.gpu is not None or claim_once_per_node(name):
                started = perf_counter()
                checked = Comparison(num_rows, count_agreeing(), perf_counter() - started)
                SliceFigures(reference_check=checked).add_to(counters)
        except BaseException:
            self.is_awaited = True
            raise
