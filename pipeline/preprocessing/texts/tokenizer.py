"""Tokenise texts with the Rust library `tokenizers`; a tokenizer.json is data, not code."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.failures import Reason, RowError
from pipeline.core.node_cache import cached_folder
from pipeline.core.printable import clean_message
from pipeline.preprocessing.texts.text_settings import TextSettings
from pipeline.process.terminal import native_errors_dropped
from pipeline.storage.store import Store, read_file, split_name

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_BYTES = 128 * 2**20
"""Limit of tokenizer files; those of multilingual models have up to about 35 MB."""
_FILE = "tokenizer.json"
_EXTRA = "tokenizers is not installed: pip install 'batch-inference-pipeline[transformers]'"


Number = TypeVar("Number", np.int8, np.int32)
NONE = np.zeros(0, np.int32)
NO_TYPES = np.zeros(0, np.int8)
NO_WORD = -1
"""Word id of special tokens."""


class Tokens(NamedTuple):
    """The tokens of N rows, concatenated."""

    ids: npt.NDArray[np.int32]
    """(T,), special tokens included."""
    types: npt.NDArray[np.int8]
    """(T,): usually 0 for the first text of a pair; empty unless the settings have types."""
    counts: npt.NDArray[np.int32]
    """(N,): tokens per row."""
    truncated: npt.NDArray[np.bool_]
    """(N,)."""
    offsets: npt.NDArray[np.int32]
    """(2 T,): start and end of each token in characters of its text; empty unless kept."""
    word_ids: npt.NDArray[np.int32]
    """(T,): word id of each token, -1 for special tokens and the first text of a pair; empty unless
    kept."""


def tokenise(
    settings: TextSettings, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> Tokens:
    """Tokenise rows.

    Args:
        settings: The tokenizer and its limits.
        texts: (N,).
        pairs: (N,), the second text of each row; None if rows are single texts.

    Raises:
        JobError: The tokenizer cannot be read.
        RowError: It fails over one of the texts.
    """
    path, overlay = str(local_tokenizer(settings)), settings.overlay
    most = None if settings.windows else settings.max_tokens
    tokenizer = _opened(path, overlay, most, cuts_start=settings.cuts_start)
    prefix = settings.prefix
    given = [prefix + text for text in texts] if prefix else list(texts)
    batch = given if pairs is None else list(zip(given, pairs, strict=True))
    # The fast form omits the offsets.
    has_offsets = settings.has_offsets or settings.windows is not None
    encode = tokenizer.encode_batch if has_offsets else tokenizer.encode_batch_fast
    encodings = encoded(encode, batch)
    return Tokens(
        ids=joined([encoding.ids for encoding in encodings], np.int32),
        types=joined(
            [encoding.type_ids for encoding in encodings] if settings.has_types else [], np.int8
        ),
        counts=np.fromiter((len(encoding) for encoding in encodings), np.int32, len(encodings)),
        truncated=np.fromiter(
            (bool(encoding.overflowing) for encoding in encodings), np.bool_, len(encodings)
        ),
        offsets=_offsets(encodings, 0 if pairs else len(prefix)) if has_offsets else NONE,
        word_ids=_words_of(path, settings, given, encodings, pairs)
        if settings.has_offsets
        else NONE,
    )


def _words_of(
    path: str,
    settings: TextSettings,
    texts: Sequence[str],
    encodings: Sequence[Encoding],
    pairs: Sequence[str] | None,
) -> npt.NDArray[np.int32]:
    """Return the word of each token; of a pair, the tokenizer's own words of the second text."""
    if pairs is None:
        return _word_ids(_rule(path, settings.overlay), texts, encodings, len(settings.prefix))
    words = [zip(encoding.word_ids, encoding.sequence_ids, strict=True) for encoding in encodings]
    seconds = [[word if of == 1 and word is not None else NO_WORD for word, of in row]
               for row in words]  # fmt: skip
    return joined(seconds, np.int32)


def encoded(encode: Callable[[Any], list[Encoding]], batch: Sequence[Any]) -> list[Encoding]:
    """Encode rows; an error of the library becomes a RowError."""
    try:
        return encode(batch)
    except BaseException as error:
        if not is_of_library(error):
            raise
        message = f"the tokenizer fails: {clean_message(f'{error}', 200)}"
        raise RowError(Reason.DECODE_ERROR, message) from None


def is_of_library(error: BaseException) -> bool:
    """Tell whether a library raised an error, which is not an interrupt.

    A panic of Rust code, as over a pattern that backtracks without end, is not an Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def joined(values: Sequence[Sequence[int]], dtype: type[Number]) -> npt.NDArray[Number]:
    """Concatenate the values of all rows."""
    return np.array(list(itertools.chain.from_iterable(values)), dtype)


def _offsets(encodings: Sequence[Encoding], num_prefix: int) -> npt.NDArray[np.int32]:
    pairs = [pair for encoding in encodings for pair in encoding.offsets]
    # Relative to the text; tokens of the prefix become empty at its start.
    return np.maximum(np.array(pairs, np.int32).reshape(-1) - num_prefix, 0)


def _word_ids(
    rule: WordRule, texts: Sequence[str], encodings: Sequence[Encoding], num_prefix: int
) -> npt.NDArray[np.int32]:
    words = [rule.word_ids(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
    for row, encoding in zip(words, encodings, strict=True):
        for token, (_, end) in enumerate(encoding.offsets):
            if end <= num_prefix:
                row[token] = NO_WORD  # the prefix is not part of the text
    return joined(words, np.int32)


@functools.lru_cache(maxsize=4)
def _rule(path: str, overlay: str) -> WordRule:
    with tokenizer_errors(f"text.tokenizer = {path}: cannot read its rule of words"):
        return WordRule.of(open_tokenizer(path, overlay))


@functools.lru_cache(maxsize=4)
def _opened(path: str, overlay: str, max_tokens: int | None, *, cuts_start: bool) -> Tokenizer:
    """Return the tokenizer of this process, cut to `max_tokens` if given, without padding."""
    tokenizer = open_tokenizer(path, overlay)
    with tokenizer_errors(f"text.tokenizer = {path}: cannot cut texts to {max_tokens} tokens"):
        side = "left" if cuts_start else "right"
        if max_tokens is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(max_tokens, strategy="longest_first", direction=side)
        tokenizer.no_padding()
    return tokenizer


def open_tokenizer(path: str, overlay: str) -> Tokenizer:
    """Read a tokenizer from a file for the rows of this process; see `parse_tokenizer`."""
    # Threads of its own would take the cores of other actors.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return parse_tokenizer(f"text.tokenizer = {path}", Path(path).read_bytes(), overlay)


def parse_tokenizer(where: str, data: bytes, overlay: str = "") -> Tokenizer:
    """Make a tokenizer from the bytes of a tokenizer.json.

    Args:
        where: What names the file, for messages.
        data: Its content.
        overlay: JSON of the sections that take the place of those in the file; those of `model`
            one by one.

    Raises:
        JobError: It is not a tokenizer, or the library is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise JobError(_EXTRA) from None
    with tokenizer_errors(f"{where} is no tokenizer"):
        text = data.decode("utf-8")
        if overlay:
            content, changed = json.loads(text), json.loads(overlay)
            changed["model"] = {**content["model"], **changed.get("model", {})}
            text = json.dumps({**content, **changed})
        tokenizer = Tokenizer.from_str(text)
    if tokenizer.post_processor is not None:
        _require_template(where, json.loads(tokenizer.post_processor.__getstate__()))
    return tokenizer


def _require_template(where: str, processor: Mapping[str, Any]) -> None:
    """Refuse special tokens that have more ids than tokens, or fewer, as texts would, too."""
    for part in processor.get("processors", [processor]):
        special = part.get("special_tokens", {})
        for name, token in special.items() if isinstance(special, dict) else ():
            num_ids, num_tokens = len(token["ids"]), len(token["tokens"])
            if num_ids != num_tokens:
                raise JobError(
                    f"{where}: post_processor gives the special token {clean_message(name, 40)} "
                    f"{num_ids} ids and {num_tokens} tokens, expected as many"
                )


@contextlib.contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Turn errors of the library in the body, panics of its Rust code included, into one line.

    Not for rows, each of which fails by itself (`tokenise`).

    Args:
        what: Start of the message: the file, and what failed.

    Raises:
        JobError: The library raised an error.
    """
    try:
        with native_errors_dropped():  # a panic writes a backtrace there
            yield
    except PipelineError:
        raise
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise JobError(f"{what}: {clean_message(f'{error}', 200)}") from None


def special_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens before and after a text.

    Truncation and padding of the tokenizer are switched off.

    Raises:
        JobError: It makes no token of a text.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode("a")
    is_special = encoding.special_tokens_mask
    if 0 not in is_special:
        raise JobError(f"{_FILE}: makes no token of the text 'a', expected one or more")
    last = len(is_special) - is_special[::-1].index(0)
    return encoding.ids[: is_special.index(0)], encoding.ids[last:]


def pad_id_of(tokenizer: Tokenizer) -> int:
    """Return the padding id of a tokenizer; 0 if it names none."""
    padding = tokenizer.padding
    if padding:
        return int(padding["pad_id"])
    ids = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|pad|>"))
    return next((number for number in ids if number is not None), 0)


def local_tokenizer(settings: TextSettings) -> Path:
    """Return the tokenizer's file in the node cache, copied there once per node.

    Raises:
        JobError: It is missing, too large, or has changed since the run was planned.
    """

    def fetch(folder: Path) -> None:
        data = read_tokenizer_bytes(settings.tokenizer_uri, settings.storage_options)
        sha256, expected = hashlib.sha256(data).hexdigest(), settings.tokenizer_sha256
        if sha256 != expected:
            raise JobError(f"{settings.tokenizer_uri}: sha256 is {sha256}, expected {expected}")
        (folder / _FILE).write_bytes(data)

    return cached_folder(f"tokenizer-{settings.tokenizer_sha256}", fetch) / _FILE


def read_tokenizer_bytes(uri: str, storage_options: Mapping[str, Any]) -> bytes:
    """Read a tokenizer.json of at most MAX_BYTES.

    Raises:
        JobError: It is missing or larger.
    """
    folder, name = split_name(uri)
    file = Store(folder, storage_options).stat(name) if name else None
    if file is None:
        raise JobError(f"text.tokenizer = {uri}: no such file")
    if file.size_bytes > MAX_BYTES:
        raise JobError(
            f"text.tokenizer = {uri}: {file.size_bytes:,} bytes, the most is {MAX_BYTES:,}"
        )
    return read_file(uri, storage_options, "text.tokenizer")


@dataclass(frozen=True)
class WordRule:
    """Groups tokens into words as transformers' TokenClassificationPipeline.

    Aggregation by words depends on this rule, not on the tokenizer's own words. If the tokenizer
    marks pieces (`##ing`), a token is a piece of a word if its length differs from that of its
    span; otherwise if there is no space before it.
    """

    marks_pieces: bool
    """Whether pieces have a prefix, such as `##`."""
    unknown_id: int | None
    """Id of the token for unknown characters, which always starts a word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read the rule from a tokenizer."""
        model = json.loads(tokenizer.to_str())["model"]
        unknown = model.get("unk_id")
        if unknown is None and model.get("unk_token") is not None:
            unknown = tokenizer.token_to_id(model["unk_token"])
        return cls(bool(model.get("continuing_subword_prefix")), unknown)

    def word_ids(self, text: str, encoding: Encoding) -> list[int]:
        """Return the word of each token, counted from 0; `NO_WORD` for special tokens."""
        word_ids, word = list[int](), NO_WORD
        for token, number, (start, end), is_special in zip(
            encoding.tokens,
            encoding.ids,
            encoding.offsets,
            encoding.special_tokens_mask,
            strict=True,
        ):
            if is_special:
                word_ids.append(NO_WORD)
                continue
            if number == self.unknown_id:
                is_piece = False
            elif self.marks_pieces:
                is_piece = len(token) != end - start
            else:
                is_piece = start > 0 and " " not in text[start - 1 : start + 1]
            word += 1 if word == NO_WORD or not is_piece else 0
            word_ids.append(word)
        return word_ids
