"""How a language model writes a text: what the job says, and the rules of its directory."""

from __future__ import annotations

from dataclasses import dataclass, field

FINISHES = ("eos", "stop", "length")
"""Why a text ends: the model ends it, a text of the job comes, or it has the most tokens."""
QUARANTINE = "quarantine"
CAUSAL, SEQ2SEQ = "causal", "seq2seq"
"""Heads of language models: one continues a text, the other answers one."""
SPEECH, CAPTION = "speech", "caption"
"""Heads of models that transcribe a clip or describe an image."""
WRITERS = (CAUSAL, SEQ2SEQ, SPEECH, CAPTION)


@dataclass(frozen=True)
class Rules:
    """What decides greedily written tokens beside the logits, as transformers applies it."""

    ends: tuple[int, ...] = ()
    """Tokens that end a text."""
    start: tuple[int, ...] = ()
    """The tokens that the decoder begins with, where the prompt is not of tokens of its own."""
    languages: tuple[int, ...] = ()
    """Of these tokens the likeliest comes behind the first of `start`, if there are some."""
    times_from: int | None = None
    """Tokens from this number on are times, and no part of a text."""
    first: int | None = None
    """The token that is forced if there is one token before it."""
    last: tuple[int, ...] = ()
    """Of these tokens one is forced if a text has the most tokens with it."""
    min_length: int = 0
    """Tokens, with those of the prompt or `start`, before which none of `ends` may come."""
    min_new_tokens: int = 0
    """The same without them."""
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    """Tokens that may not be the first of an output."""
    banned_words: tuple[tuple[int, ...], ...] = ()
    """Several tokens in a row that may not come."""
    repetition_penalty: float = 1.0
    """Logits of tokens that were there are divided by it if positive, otherwise multiplied."""
    no_repeat_ngram: int = 0
    """So many tokens in a row may come once; 0: any."""
    cleans: bool = False
    """Whether a text loses the spaces before marks, such as ` .`."""


@dataclass(frozen=True)
class Generation:
    """What a job and its model say of the texts to write; for JSON, and can be pickled."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end an output, and are no part of it."""
    invalid: str = "keep"
    """`quarantine` for outputs that are empty or have the most tokens, or `keep`."""
    schema: str = ""
    """Outputs are records of this canonical JSON schema; '': they are texts."""
    rules: Rules = field(default_factory=Rules)
