"""How texts become tokens for a job: what the model directory says, unless the job says another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import JobError
from pipeline.job.text import Text
from pipeline.models.directories.facts import TextFacts
from pipeline.models.directories.text.hypotheses import hypotheses, reserved_tokens
from pipeline.preprocessing.texts.text_settings import TextSettings
from pipeline.preprocessing.texts.tokenizer import (
    pad_id_of,
    parse_tokenizer,
    read_tokenizer_bytes,
    tokenizer_errors,
)

_TENSORS = ("input_ids", "attention_mask", "token_type_ids")


def choose_text(
    name: str,
    wanted: Text,
    own: TextFacts | None,
    folder_uri: str | None,
    storage_options: Mapping[str, Any],
    *,
    has_offsets: bool,
    hypotheses_of: Sequence[str] = (),
) -> TextSettings:
    """Choose the tokenizer and its limits.

    Args:
        name: The model, for messages.
        wanted: The job's section.
        own: What the model directory says; None for a model without one.
        folder_uri: The model directory.
        storage_options: Of the model.
        has_offsets: Whether the task needs the places of tokens in the text.
        hypotheses_of: Prompts that the model puts behind each text; the longest must fit.

    Raises:
        JobError: There is no tokenizer or limit, or they cannot be used.
    """
    uri = wanted.tokenizer or (own and f"{folder_uri}/{own.tokenizer}")
    if not uri:
        raise JobError(
            f"text.tokenizer: {name} brings no tokenizer; give the URI of a tokenizer.json"
        )
    data = read_tokenizer_bytes(uri, storage_options)
    tokenizer = parse_tokenizer(f"text.tokenizer = {uri}", data)
    with tokenizer_errors(f"text.tokenizer = {uri}: fails over texts"):
        reserved = reserved_tokens(hypotheses(tokenizer, hypotheses_of))
    return TextSettings(
        tokenizer_uri=uri,
        tokenizer_sha256=hashlib.sha256(data).hexdigest(),
        max_tokens=_max_tokens(name, wanted, own, tokenizer, reserved),
        prefix=wanted.prefix if wanted.prefix is not None else (own.prefix if own else ""),
        pad_id=own.pad_id if own else pad_id_of(tokenizer),
        tensor_names=own.tensor_names if own else _TENSORS,
        has_offsets=has_offsets,
        storage_options=storage_options,
    )


def _max_tokens(
    name: str, wanted: Text, own: TextFacts | None, tokenizer: Any, reserved: int
) -> int:
    most = wanted.max_tokens or (own.max_tokens - reserved if own else None)
    if most is None:
        raise JobError(f"text.max_tokens: {name} says no limit; give the most tokens of a row")
    if own and most > own.max_tokens - reserved:
        raise JobError(
            f"text.max_tokens = {most}: {name} takes {own.max_tokens - reserved} at most"
        )
    with tokenizer_errors("text.tokenizer: cannot count its special tokens"):
        least = tokenizer.num_special_tokens_to_add(is_pair=True) + 2
    if most < least:
        raise JobError(
            f"text.max_tokens = {most}: leaves no room beside special tokens; give {least} or more"
        )
    return most
