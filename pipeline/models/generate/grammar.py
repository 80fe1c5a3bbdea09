"""The grammar of records: which tokens may come next, by llguidance (extra `schema`).

The library gets the canonical form of a schema (`schema.py`), never the job's own text. The only
white space allowed is one space after a comma or colon: a model could write more without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
SPACES: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
"""Options of the library: where records may have white space."""
_MARKS = '{}[]":,-0123456789truefalsn'
"""The characters of records outside of names and strings."""
_ANY = np.uint32(0xFFFFFFFF)
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "max_grammar_size": 100_000,
    "max_lexer_states": 400_000,
    "verbose_errors": False,
}
"""Limits of the library: the cost of compiling, and the states that all records together keep,
half a KiB each. A character of a string of limited length takes up to 16 states, one of an enum up
to 2, so schemas of the subset stay below the limit."""


def require_grammars() -> None:
    """Check that the library of the extra is installed.

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
        """Return the grammar of a job, None if it writes texts; raises as `__init__`."""
        if not generation.schema:
            return None
        return cls(generation.schema, tokenizer, generation.rules.ends)

    def __init__(self, schema: str, tokenizer: PromptTokenizer, ends: tuple[int, ...] = ()) -> None:
        """Compile a schema.

        Args:
            schema: Canonical.
            ends: Tokens that end a text; they are not part of a record.

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
        """Return the matcher of an empty record."""
        return Matcher(self._first.deep_copy())

    def mask(self, matchers: Sequence[Matcher | None], num_tokens: int) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, bool (B, V).

        Args:
            matchers: (B,); None: any token may come.
            num_tokens: V, the model's.
        """
        words = -(-max(num_tokens, self._tokens.vocab_size) // 32)
        bits = np.zeros((len(matchers), words), np.uint32)
        for row, matcher in zip(bits, matchers, strict=True):
            allowed = None if matcher is None else matcher.allowed()
            if allowed is None:
                row[:] = _ANY
            else:
                row[: len(allowed)] = allowed[: len(row)]  # may be one word longer
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
        """Tell whether the record is complete, or cannot go on."""
        return bool(self._state.is_stopped())

    @property
    def problem(self) -> str:
        """Return why the record cannot go on; '' if it can, or is complete."""
        return _error_of(self._state)

    def take(self, tokens: Sequence[int]) -> None:
        """Take all tokens so far; the first ones may have been taken before."""
        if new := [*tokens[self._num_taken :]]:
            self._state.consume_tokens(new)
            self._num_taken = len(tokens)

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """Return a bit per token that may come next; None if there is a problem."""
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint32)
        return None if self._state.is_error() else bits


@lru_cache(maxsize=2)
def _tokens_of(tokenizer: str, ends: tuple[int, ...]) -> LLTokenizer:
    """Return the library's form of a tokenizer.

    Raises:
        JobError: Its tokens do not stand for bytes, or no token ends a text.
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

    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=SPACES)
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    if matcher.is_error():
        raise JobError(f"{_FIELD}: exceeds a limit of llguidance: {_error_of(matcher)}")
    return matcher


def _with_bytes(tokenizer: str) -> str:
    """Return a tokenizer.json whose decoder says which bytes a token stands for.

    The decoder of SentencePiece models without bytes only says what stands for a space.
    """
    values = json.loads(tokenizer)
    decoder = values.get("decoder") or {}
    if decoder.get("type") != "Metaspace":
        return tokenizer
    space = {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "}
    plain = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return json.dumps({**values, "decoder": {"type": "Sequence", "decoders": plain}})


def _require_writable(tokens: LLTokenizer, decode: Callable[[list[int]], str], needed: str) -> None:
    """Refuse a tokenizer that lacks a character that records need.

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
            f"{_FIELD}: the model's tokenizer decodes tokens to other characters than they stand "
            "for, so records would change; take another model"
        )


def _texts_of(schema: str) -> Iterator[str]:
    """Yield the characters that records need: marks, names, and the values of enums."""
    yield _MARKS
    for value in all_schemas(json.loads(schema)):
        for text in (*value.get("properties", ()), *values_of(value)):
            yield json.dumps(text, ensure_ascii=False)


def _error_of(state: LLMatcher) -> str:
    """Return the first line of an error of the library; its state may follow."""
    return clean_message(state.get_error().partition("\n")[0], 200)
