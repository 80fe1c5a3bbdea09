"""Which tokens may come next while a record is written, by the library of the extra `schema`.

The library is given the canonical form of `subset.py`, never what a job says. A space may stand
behind a comma and a colon, and no other white space: a model could write it without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.generate.schema import all_schemas, values_of
from pipeline.models.generate.spec import Generation
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.tokenizer import tokenizer_errors

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_FIELD = "model.generate.schema"
_SPACES = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_MARKS = '{}[]":,-0123456789truefalsn'
"""What records have beside names and texts."""
_ANY = np.uint32(0xFFFFFFFF)
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "max_grammar_size": 100_000,
    "max_lexer_states": 400_000,
    "verbose_errors": False,
}
"""Of the library: what compiling may take, and what all records together keep of a schema while
they are written, half a KiB each. A character of a string of limited length takes up to 16 of
these states, one of an enum up to 2, so that schemas of the subset have fewer."""


def require_grammars() -> None:
    """Refuse schemas where the library of the extra is not installed.

    Raises:
        JobError: Names the extra.
    """
    if find_spec("llguidance") is None:
        raise JobError(
            f"{_FIELD}: package llguidance is missing; schemas need the extra: "
            "pip install 'batch-inference-pipeline[schema]'"
        )


class Grammar:
    """The records of a schema, written in tokens of a tokenizer."""

    @classmethod
    def of(cls, generation: Generation, tokenizer: PromptTokenizer) -> Grammar | None:
        """Return the grammar of a job; None: its outputs are texts. Raises as when it is made."""
        if not generation.schema:
            return None
        return cls(generation.schema, tokenizer, generation.rules.ends)

    def __init__(self, schema: str, tokenizer: PromptTokenizer, ends: tuple[int, ...] = ()) -> None:
        """Compile a schema.

        Args:
            schema: Canonical.
            ends: Tokens that end a text; they are no part of a record.

        Raises:
            JobError: The extra is not installed, the tokenizer cannot write such records, or the
                schema is beyond the limits.
        """
        require_grammars()
        self._ends = [*ends]
        self._tokens = _tokens_of(tokenizer.to_json(), ends)
        _require_writable(self._tokens, tokenizer.text, "".join(_texts_of(schema)))
        self._first = _compiled(schema, self._tokens)

    def begin(self) -> Matcher:
        """Return a record of which nothing is written."""
        return Matcher(self._first.deep_copy())

    def mask(self, matchers: Sequence[Matcher | None], num_tokens: int) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, bool (B, V).

        Args:
            matchers: (B,); None: any may.
            num_tokens: V, of the model.
        """
        words = -(-max(num_tokens, self._tokens.vocab_size) // 32)
        bits = np.zeros((len(matchers), words), np.uint32)
        for row, matcher in zip(bits, matchers, strict=True):
            allowed = None if matcher is None else matcher.allowed()
            if allowed is None:
                row[:] = _ANY
            else:
                row[: len(allowed)] = allowed[: len(row)]  # it may have a word more
                for token in self._ends:
                    row[token // 32] &= ~np.uint32(1 << token % 32)
        whole = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        return whole[:, :num_tokens].view(np.bool_)


class Matcher:
    """A record while it is written."""

    def __init__(self, state: LLMatcher) -> None:
        self._state, self._num_taken = state, 0

    @property
    def is_done(self) -> bool:
        """Tell whether nothing can follow: the record is complete, or there is a problem."""
        return bool(self._state.is_stopped())

    @property
    def problem(self) -> str:
        """Return why the record cannot go on; '': it can, or is complete."""
        return _error_of(self._state)

    def take(self, tokens: Sequence[int]) -> None:
        """Take what is written: what was taken before, and what is new behind it."""
        if new := [*tokens[self._num_taken :]]:
            self._state.consume_tokens(new)
            self._num_taken = len(tokens)

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """Return a bit for each token that may come next; None: there is a problem."""
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint32)
        return None if self._state.is_error() else bits


@lru_cache(maxsize=2)
def _tokens_of(tokenizer: str, ends: tuple[int, ...]) -> LLTokenizer:
    """Return a tokenizer as the library knows it.

    Raises:
        JobError: Its tokens are no bytes, or none of them can end a text.
    """
    from llguidance import LLTokenizer

    problem = (
        f"{_FIELD}: the model's tokenizer is neither byte-level BPE nor SentencePiece, so its "
        "tokens make no JSON"
    )
    with tokenizer_errors(problem):
        tokens = LLTokenizer(_with_bytes(tokenizer), eos_token=[*ends] or None)
    if not ends and not tokens.is_special_token(tokens.eos_token):
        raise JobError(f"{_FIELD}: the model's tokenizer has no token that ends a text")
    return tokens


def _compiled(schema: str, tokens: LLTokenizer) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_SPACES)
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    if matcher.is_error():
        raise JobError(f"{_FIELD}: is too much for llguidance: {_error_of(matcher)}")
    return matcher


def _with_bytes(tokenizer: str) -> str:
    """Return a tokenizer.json whose decoder says of what bytes tokens are.

    Of SentencePiece models without bytes the decoder only says what stands for a space.
    """
    values = json.loads(tokenizer)
    decoder = values.get("decoder") or {}
    if decoder.get("type") != "Metaspace":
        return tokenizer
    space = {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "}
    plain = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return json.dumps({**values, "decoder": {"type": "Sequence", "decoders": plain}})


def _require_writable(tokens: LLTokenizer, decode: Callable[[list[int]], str], needed: str) -> None:
    """Refuse a tokenizer that lacks a character which records cannot do without.

    Raises:
        JobError: Names the character.
    """
    for character in dict.fromkeys(needed):
        if tokens.decode_str(tokens.greedy_tokenize(character)) != character:
            raise JobError(
                f"{_FIELD}: the model's tokenizer has no token for {character!r}, so the model "
                "cannot write such records; take another model"
            )
    if decode(tokens.greedy_tokenize(needed)) != needed:
        raise JobError(
            f"{_FIELD}: the model's tokenizer makes another text of its tokens than they say, so "
            "records would change; take another model"
        )


def _texts_of(schema: str) -> Iterator[str]:
    """Yield what records cannot do without: marks, names, and the values of enums."""
    yield _MARKS
    for value in all_schemas(json.loads(schema)):
        for text in (*value.get("properties", ()), *values_of(value)):
            yield json.dumps(text, ensure_ascii=False)


def _error_of(state: LLMatcher) -> str:
    """Return the first line of an error of the library, which may tell its state behind it."""
    return clean_message(state.get_error().partition("\n")[0], 200)
