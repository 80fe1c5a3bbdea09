"""transformers' continuous batching, for the rows of one session.

The library computes in a thread of its own, and tells little of what goes wrong there: a request
may end with an error, without all of its tokens, or never. So whatever is not as it should be
counts as not written, and a thread that stands still is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from time import monotonic
from typing import Any, NamedTuple

import torch

from pipeline.core.device_errors import end_process
from pipeline.inference.engines.greedy import EOS, LENGTH
from pipeline.inference.engines.rules import Row
from pipeline.models.directories.library import quiet
from pipeline.models.generation import Generation
from pipeline.preprocessing.model_input import BatchLimits

_POLL_S, _STILL_S, _STOP_S = 1.0, 60.0, 60.0
_MOST_PASSES = 4
"""A row ends within so many passes for each token of the longest, output and all, and each row."""
_PAGE_TOKENS = 256
"""Keys and values are kept in pages of so many tokens: flash attention takes no smaller ones."""
_PASS_TOKENS = 4_096
"""Tokens of prompts and outputs that one pass of the model reads at most."""


class Prompted(NamedTuple):
    """A row to write."""

    row: Row
    prompt: list[int]


@torch.inference_mode()
def write_rows(
    model: Any,
    generation: Generation,
    rows: Sequence[Prompted],
    limits: BatchLimits,
    attention: str,
    *,
    still_s: float = _STILL_S,
) -> str:
    """Write rows in place; one that is not written has no `finish`.

    Args:
        model: A causal model of transformers, in eval mode.
        generation: Ends of texts are its only rules.
        rows: Of which nothing is written yet.
        limits: Rows, and tokens of prompts and outputs, at once.
        attention: As `set_attn_implementation` names it.
        still_s: The session ends if no pass of the model does within so long.

    Returns:
        What went wrong first; '': all rows are written.

    Raises:
        Exception: The library refuses the model, or what is asked of it.
    """
    from transformers import GenerationConfig

    most, ends = generation.max_new_tokens, [*generation.rules.ends]
    greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=ends or -1)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # errors are returned
    with quiet(), _attending(model, attention):
        manager = model.init_continuous_batching(greedy, _settings(rows, most, limits))
        waiting = {str(each.row.number): each for each in rows}
        try:
            # All of them wait before the first pass, so the passes depend on no clock.
            for name, each in waiting.items():
                manager.add_request(each.prompt, name, most, eos_token_id=ends or -1)
            manager.start()
            return _gather(manager, waiting, generation, still_s)
        finally:
            manager.stop(timeout=_STOP_S, hard_stop=True)
            if manager.is_running():  # nothing else ends a thread that waits for its device
                end_process(f"transformers' continuous batching stands still for {_STOP_S:.0f} s")
            manager.destroy()


def _settings(rows: Sequence[Prompted], most: int, limits: BatchLimits) -> Any:
    from transformers import ContinuousBatchingConfig

    at_once, row_tokens = rows_at_once(rows, most, limits)
    return ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=at_once * ceil(row_tokens / _PAGE_TOKENS),
        max_batch_tokens=max(at_once, min(limits.tokens or _PASS_TOKENS, _PASS_TOKENS)),
        max_requests_per_batch=at_once,
        # By itself it would take one from the network.
        auto_switch_to_flash=False,
        allow_block_sharing=False,
        return_logprobs=True,
    )


def rows_at_once(rows: Sequence[Prompted], most: int, limits: BatchLimits) -> tuple[int, int]:
    """Return how many rows may be written at once, and the tokens of the longest, output and all.

    Args:
        rows: At least one.
        most: Tokens of an output.
        limits: Of rows, and of tokens of prompts and outputs.
    """
    row_tokens = max(len(each.prompt) for each in rows) + most
    at_once = min(limits.rows, limits.tokens // row_tokens) if limits.tokens else limits.rows
    return max(1, min(at_once, len(rows))), row_tokens


@contextmanager
def _attending(model: Any, attention: str) -> Iterator[None]:
    own = model.config._attn_implementation
    try:
        model.set_attn_implementation(attention)
        yield
    finally:
        model.set_attn_implementation(own)


def _gather(
    manager: Any, waiting: dict[str, Prompted], generation: Generation, still_s: float
) -> str:
    problem, passes, ended_at, since_s = "", -1, 0, monotonic()
    longest = max(len(each.prompt) for each in waiting.values())
    most = _MOST_PASSES * (longest + generation.max_new_tokens + len(waiting))
    while waiting:
        done = manager.get_result(timeout=min(_POLL_S, still_s))
        # The first pass, before which there is no number, allocates the cache.
        number = getattr(manager, "current_batch", -1)
        if done is not None and done.is_finished():
            each, ended_at = waiting.pop(done.request_id), number
            problem = problem or done.error or _take(each, done, generation)
        if done is not None or number != passes:
            passes, since_s = number, monotonic()
        elif not manager.is_running():
            return problem or "its thread ended before the rows did"
        elif monotonic() - since_s > still_s:
            return problem or f"it stood still for {still_s:.0f} s"
        if number - ended_at > most:
            return problem or f"no row ended in {most:,} passes"
    return problem


def _take(each: Prompted, done: Any, generation: Generation) -> str:
    """Take an output into its row; return what is wrong with it, ''."""
    tokens, ends = [*done.generated_tokens], generation.rules.ends
    ended = [token in ends for token in tokens]
    if len(done.logprobs) != len(tokens):
        return f"{len(done.logprobs)} log-probabilities came for {len(tokens)} tokens"
    if not tokens or any(ended[:-1]) or not (ended[-1] or len(tokens) == generation.max_new_tokens):
        return f"an output of {len(tokens)} tokens ended where it should not"
    row = each.row
    row.before, row.num_input, row.tokens = each.prompt, len(each.prompt), tokens
    row.logprob, row.finish = sum(done.logprobs), EOS if ended[-1] else LENGTH
    return ""
