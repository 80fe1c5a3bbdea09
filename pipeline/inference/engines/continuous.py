"""Which way an actor writes texts: by batches of its own, or by transformers' continuous batching.

The library packs the tokens of all rows into one, whatever their lengths, and lets a CUDA graph of
flash attention run over pages of keys and values. It drops what it does not know, such as rules and
caps of attention, without an error. So it is asked only for what it has, and an actor takes it only
after its first batch was written both ways: it must have written the same, in less time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch

from pipeline.core.cache.cache_folder import CLAIMS, cache_folder
from pipeline.core.cache.private_files import first_of
from pipeline.core.figures.counters import Counters
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.core.printable import clean_message
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.engines.greedy import Slice
from pipeline.inference.engines.library_batches import Prompted, rows_at_once, write_rows
from pipeline.inference.engines.rules import Row
from pipeline.inference.engines.teacher import num_agreed
from pipeline.models.directories.text.writing.causal import CausalDecoding
from pipeline.models.generation import Generation, Rules
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.process.liveness import no_limit, unguarded

_MOST_SHARE = 0.9
"""Of the time of own batches, that the library may take."""
_LEAST_ROWS = 8
"""So many are tried at least."""
_LEAST_OFF, _ROUNDINGS = 1e-3, 4.0
"""How far mean log-probabilities of the same tokens may be apart, and in roundings of the type."""
TAKEN = (
    "transformers' continuous batching writes the texts: on the first batch of an actor it was "
    "faster than the pipeline's own batches, and its texts agreed"
)
NOT_TAKEN = "the pipeline's own batches write the texts, not transformers' continuous batching: {}"
AGAIN = (
    "transformers' continuous batching did not write all rows ({}), so the pipeline's own batches "
    "wrote the others again, and go on without it"
)
Keep = Callable[[Sequence[Row], Slice], object]


class Continuous:
    """Chooses for one actor, and writes."""

    def __init__(
        self,
        model: DeviceModel,
        generation: Generation,
        own: tuple[Keep, Keep],
        attention: str | None = None,
        most_share: float = _MOST_SHARE,
    ) -> None:
        """Take a model.

        Args:
            model: Writes; of an actor, as a lost device ends the process.
            generation: How texts are written.
            own: Writes rows of a slice by own batches, or fails them; and keeps rows that ended.
            attention: As `set_attn_implementation` names it, on any device; None: flash attention,
                on CUDA alone.
            most_share: Of the time of own batches, that the library may take.
        """
        self._model, self._generation, self._most_share = model, generation, most_share
        (self._own, self._keep), self._lock = own, threading.Lock()
        module = cast(Any, model.module)
        self._is_asked = bool(attention) or module.device.type == "cuda"
        self._attention = attention or (_flash_attention() if self._is_asked else "")
        self._refusal: str | None = self._unfit(module)
        """Why the library does not write; '': it does; None: it has not been tried."""

    def write(self, rows: Sequence[Row], held: Slice, counters: Counters) -> None:
        """Write the rows of a slice, each by one way or the other.

        Args:
            rows: Of which nothing is written yet.
            held: Their slice.
            counters: Get a line on what is chosen, with the rows that it is about.
        """
        with unguarded():  # the actor's other slice may be trying
            self._lock.acquire()
        try:
            if self._refusal is None and len(rows) >= _LEAST_ROWS:
                rows = self._try(rows, held)
        finally:
            self._lock.release()
        advice = dict[str, int]()
        if self._refusal == "":
            rows = self._by_library(rows, held, advice)
        elif self._refusal and self._is_asked:
            advice[NOT_TAKEN.format(self._refusal)] = 0
        self._own(rows, held)
        SliceFigures(advice=advice).add_to(counters)

    def _unfit(self, module: Any) -> str | None:
        """Return why the library need not be tried; None: it is to be."""
        import transformers

        generation = self._generation
        if type(module) is not CausalDecoding:
            return "it takes models that continue a text, and nothing beside it"
        if generation.schema or generation.stop:
            return "it knows no generate.schema and no generate.stop"
        if replace(generation.rules, ends=()) != Rules():
            return "it does not apply all rules of the directory's generation_config.json"
        if not hasattr(transformers, "ContinuousBatchingConfig"):
            return "the installed transformers is too old for it"
        if not self._attention:
            # By SDPA each row looks at the tokens of all: on a CPU it takes 1.1 times (16 rows at
            # once) to 1.7 times (64) as long as own batches, and on CUDA the library has no graphs.
            return "it is tried with flash attention alone, which is not installed"
        return None

    def _try(self, rows: Sequence[Row], held: Slice) -> Sequence[Row]:
        """Write the first batch both ways, and choose; return the rows that are left."""
        most, limits = self._generation.max_new_tokens, self._model.limits
        size = max(_LEAST_ROWS, rows_at_once(_prompted(rows, held.inputs), most, limits)[0])
        some, began = rows[:size], perf_counter()
        self._own(some, held)
        own_s = perf_counter() - began
        mine = [held.written[row.number] for row in some if row.number in held.written]
        if len(mine) == len(some):  # otherwise the time tells nothing; the next slice may
            self._refusal = self._compared(mine, own_s, held.inputs)
        return rows[size:]

    def _compared(self, mine: Sequence[Row], own_s: float, inputs: Inputs) -> str:
        """Return why the library does not write, after it wrote the same rows; ''."""
        theirs = [row.afresh() for row in mine]
        problem, library_s = self._session(_prompted(theirs, inputs))
        if problem:
            return problem
        module = cast(CausalDecoding, self._model.module)
        limit = _LEAST_OFF + _ROUNDINGS * torch.finfo(next(module.parameters()).dtype).eps
        others = []
        for own, other in zip(mine, theirs, strict=True):
            if own.tokens != other.tokens:
                others.append(other)
            elif not abs(own.logprob - other.logprob) <= limit * len(own.tokens):
                return "log-probabilities of the same tokens differ on the first batch"
        if self._num_agreed(module, others, inputs) < len(others):
            return "the texts of the first batch differ by more than rounding"
        if library_s > self._most_share * own_s:
            return f"it takes more than {self._most_share:.0%} of their time for the first batch"
        return ""

    def _num_agreed(self, module: CausalDecoding, rows: Sequence[Row], inputs: Inputs) -> int:
        read: Callable[..., AbstractContextManager[Any]] = partial(self._model.on_device, inputs)
        precision = self._model.config.spec.precision
        with no_limit():
            return self._model.call(num_agreed, module, self._generation, rows, precision, read)

    def _by_library(
        self, rows: Sequence[Row], held: Slice, advice: dict[str, int]
    ) -> Sequence[Row]:
        """Write rows by the library; return those that it has not written, as they were."""
        advice[TAKEN] = 0
        if not rows:
            return rows
        problem, took_s = self._session(_prompted(rows, held.inputs))
        done = [row for row in rows if row.finish is not None]
        self._keep(done, held)
        spent, read = held.spent, sum(row.num_input for row in done)
        wrote = sum(len(row.tokens) for row in done)
        spent.input_tokens += read
        spent.padded_tokens += read
        spent.output_tokens += wrote
        # Tokens of both kinds pass the model together: each has the same share of the time.
        prefill_s = took_s * read / max(1, read + wrote)
        spent.prefill_s += prefill_s
        spent.decode_s += took_s - prefill_s
        left = [row.afresh() for row in rows if row.finish is None]
        advice[TAKEN] = len(done)
        if problem:
            self._refusal = problem
            advice[AGAIN.format(problem)] = len(left)
        return left

    def _session(self, rows: Sequence[Prompted]) -> tuple[str, float]:
        """Write rows in place, alone on the device; return what went wrong, '', and the seconds."""
        with no_limit():  # the session ends itself if it stands still
            problem, took_s = self._model.call(self._marked, rows)
        if problem:
            self._model.make_room()
        return problem, took_s

    def _marked(self, rows: Sequence[Prompted]) -> tuple[str, float]:
        # In the thread of the GPU: of the actor's slices, one after the other comes here.
        mark, began = self._mark(), perf_counter()
        if mark is None:
            return "a process that wrote by it on this device has ended, or still does", 0.0
        module, limits = cast(CausalDecoding, self._model.module), self._model.limits
        try:
            problem = write_rows(module.model, self._generation, rows, limits, self._attention)
        except Exception as error:  # noqa: BLE001  # own batches do without it
            problem = f"{type(error).__name__}: {error}"
        if problem and self._model.gpu is not None:
            self._model.gpu.lacks_memory(RuntimeError(problem))  # ends it if its context is lost
        mark.unlink()
        return clean_message(problem, 200), perf_counter() - began

    def _mark(self) -> Path | None:
        """Make the mark of a session on this device; None if there is one.

        A session that ends its process leaves it, so that the next process does not try again.
        """
        gpu, run_id = self._model.gpu, self._model.config.run_id
        name = f"continuous-{run_id}-{gpu.key if gpu else 'cpu'}"
        path = first_of([cache_folder() / CLAIMS]) / name
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return None
        return path


def _prompted(rows: Sequence[Row], inputs: Inputs) -> list[Prompted]:
    ids, counts = inputs["input_ids"], inputs["num_tokens"]
    return [Prompted(row, ids[row.number, : counts[row.number]].tolist()) for row in rows]


def _flash_attention() -> str:
    """Return the flash attention that is installed; '': none."""
    from transformers import utils

    for number in (3, 2):
        is_there = getattr(utils, f"is_flash_attn_{number}_available", None)
        if is_there is not None and is_there():
            return f"flash_attention_{number}"
    return ""
