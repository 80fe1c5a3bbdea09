"""Settings of tasks `generate` and `transcribe`: of the job, and rules of the model directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

FINISHES = ("eos", "stop", "length")
"""Why a text ends: by a token of the model, by a stop text of the job, or at the length limit."""
QUARANTINE = "quarantine"
CAUSAL, SEQ2SEQ = "causal", "seq2seq"
"""Heads of language models: one continues a text, the other answers one."""
SPEECH, CAPTION = "speech", "caption"
"""Heads of models that transcribe a clip or describe an image."""
WRITERS = (CAUSAL, SEQ2SEQ, SPEECH, CAPTION)


@dataclass(frozen=True)
class Rules:
    """Rules that restrict greedy tokens, as transformers applies them."""

    ends: tuple[int, ...] = ()
    """Tokens that end a text."""
    start: tuple[int, ...] = ()
    """Tokens that the decoder begins with; () if it continues the prompt's."""
    languages: tuple[int, ...] = ()
    """Language tokens; the likeliest follows the first token of `start`."""
    times_from: int | None = None
    """Tokens from this number on are timestamps, and not part of a text."""
    latest_begin: int | None = None
    """Most steps of a timestamp after which the first words of a window may begin; None: any."""
    first: int | None = None
    """Token that is forced after a single token."""
    last: tuple[int, ...] = ()
    """Tokens one of which is forced at the length limit."""
    min_length: int = 0
    """Least number of tokens, with the prompt or `start`, before one of `ends`."""
    min_new_tokens: int = 0
    """The same without the prompt or `start`."""
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    """Tokens that may not begin an output."""
    banned_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that may not come."""
    repetition_penalty: float = 1.0
    """Positive logits of earlier tokens are divided by it, negative ones multiplied."""
    no_repeat_ngram: int = 0
    """Length of the sequences of tokens that may come only once; 0: no limit."""
    cleans: bool = False
    """Whether spaces before punctuation are removed, as in ` .`."""


@dataclass(frozen=True)
class Generation:
    """All settings of the texts to write; becomes JSON, and can be pickled."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end an output, and are not part of it."""
    invalid: str = "keep"
    """Whether to `keep` or `quarantine` outputs that are empty or at the length limit."""
    schema: str = ""
    """Canonical JSON schema of the records to write; '' for texts."""
    rules: Rules = field(default_factory=Rules)
    temperature: float = 0.0
    """Logits are divided by it before a token is drawn; 0: the likeliest token is taken."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones, whose probabilities add up to this."""
    seed: int | None = None
    """Decides the drawn tokens of a row, together with its prompt; None: none are drawn."""
    timestamps: bool = False
    """Whether texts have segments with their times."""


@dataclass(frozen=True)
class Transcription:
    """How the frames of a clip become a text, as models of connectionist temporal classification
    write; becomes JSON, and can be pickled."""

    tokens: tuple[str, ...]
    """What each output of a frame stands for."""
    blank: str
    """The token of a frame in which nothing begins."""
    delimiter: str | None
    """The token between two words."""
    space: str
    """What stands between two words in a text."""
    lowers: bool
    """Whether texts are in lower case."""
    cleans: bool
    """Whether spaces before punctuation are removed, as in ` .`."""

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of frames, before it is cleaned.

        Args:
            ids: The best output of each frame.
        """
        grouped = [token for token, _ in groupby(self.tokens[number] for number in ids)]
        text = "".join(
            self.space if token == self.delimiter else token
            for token in grouped
            if token != self.blank
        ).strip()
        return text.lower() if self.lowers else text
