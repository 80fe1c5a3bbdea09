"""Read a model directory's rules of writing, as the library's `GenerationConfig`.

Outputs are greedy. Settings that change greedy outputs are applied as transformers does, or
refused. Settings for other outputs, such as samples, are overridden, and reported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.files import CONFIG, GENERATION, checked, preview, read_value
from pipeline.models.directories.library import quiet
from pipeline.models.directories.model_class import ModelClass
from pipeline.models.directories.text.tokens import library_tokens
from pipeline.models.generate.spec import SPEECH, Rules

_SPACED = "a . b , c ? d ! e n't f 's g"
_MOST = 1 << 20
_DONE = frozenset(
    (
        *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id"),
        *("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "min_length"),
        *("min_new_tokens", "no_repeat_ngram_size", "pad_token_id", "repetition_penalty"),
        *("suppress_tokens", "is_multilingual", "language", "task"),
    )
)
"""Settings that are applied."""
OVERRIDDEN = (
    *("do_sample", "num_beams", "num_return_sequences", "max_length", "max_new_tokens", "max_time"),
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "penalty_alpha", "num_beam_groups", "prompt_lookup_num_tokens"),
)
"""Settings that choose among several outputs, or limit their length."""
_SILENT = (
    *("_", "assistant_", "cache_", "compile_config", "continuous_", "disable_compile"),
    *("diversity_penalty", "early_stopping", "is_assistant", "length_penalty", "low_memory"),
    *(
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_",
        "output_",
        "prefill_chunk_size",
    ),
    *("renormalize_logits", "return_dict_in_generate", "speculation_type", "target_lookbehind"),
    *("transformers_version", "use_"),
)
"""Prefixes of settings of beams, and of how the library runs."""


def generation_facts(folder: Path, chosen: ModelClass) -> GenerationFacts:
    """Read the rules of a language model's directory; a refusal becomes `problem`.

    Raises:
        JobError: The model does not read texts, or not several at once.
    """
    _require_texts(chosen)

    def read() -> GenerationFacts:
        reader = Reader(folder, chosen)
        return reader.facts(reader.start() if chosen.config.is_encoder_decoder else ())

    return or_problem(read)


def _require_texts(chosen: ModelClass) -> None:
    name, taken = chosen.named.__name__, inspect.signature(chosen.built.forward).parameters
    clips = [key for key in ("input_features", "input_values") if key in taken]
    if clips or chosen.head == SPEECH:
        raise JobError(
            f"model.path: config.json: {name} reads clips of sound among the tokens of a text, "
            "which no input gives; take Whisper, or a language model; model.factory, with "
            "source.inputs, runs it"
        )


def or_problem(read: Callable[[], GenerationFacts]) -> GenerationFacts:
    """Return the facts that `read` returns, or facts with the problem if it refuses."""
    try:
        return read()
    except JobError as error:
        return GenerationFacts(
            Rules(), None, str(error), f"{GENERATION}: refused for task 'generate'"
        )


class Reader:
    """Reads the rules of a directory by the library, and checks their values."""

    def __init__(self, folder: Path, chosen: ModelClass) -> None:
        """Read the directory's `generation_config.json`, or else its `config.json`.

        The file is read, as the library's configuration of a model drops rules of writing.

        Raises:
            JobError: The library cannot read it.
        """
        from transformers import GenerationConfig

        self._folder = folder
        self.module: Any = chosen.module
        self.config = chosen.config.get_text_config(decoder=True)
        self.where = GENERATION if (folder / GENERATION).is_file() else CONFIG
        try:
            with quiet():
                made = GenerationConfig.from_pretrained(
                    folder,
                    config_file_name=self.where,
                    local_files_only=True,
                    _from_model_config=self.where != GENERATION,
                )
        except Exception as error:  # the library checks values in many ways
            raise self.failed(error) from error
        self.made = made
        self.values: Mapping[str, Any] = made.to_dict()
        self.usual: Mapping[str, Any] = GenerationConfig().to_dict()

    def failed(self, error: Exception) -> JobError:
        """Return an error of the library in one line."""
        reason = clean_message(f"{type(error).__name__}: {error}", 200)
        return JobError(f"model.path: {self.where}: the library cannot read its rules: {reason}")

    def facts(self, start: tuple[int, ...], **rules: Any) -> GenerationFacts:
        """Return the rules.

        Args:
            start: The tokens that a decoder begins with; () if it continues a prompt.
            rules: Further fields of `Rules`.

        Raises:
            JobError: The rules are refused.
        """
        ends, forced = self.ids("eos_token_id"), self.ids("forced_bos_token_id")
        listed = read_value(self.values, "bad_words_ids", self.where, list, [])
        words = [self.checked_ids("bad_words_ids", word) for word in listed]
        words = [word for word in words if len(word) != 1 or word[0] not in ends]
        all_rules = Rules(
            ends=ends,
            start=start,
            first=forced[0] if forced else None,
            last=self.ids("forced_eos_token_id"),
            min_length=self.number("min_length", int),
            min_new_tokens=self.number("min_new_tokens", int),
            banned=(*self.ids("suppress_tokens"), *(w[0] for w in words if len(w) == 1)),
            banned_first=self.ids("begin_suppress_tokens"),
            banned_words=tuple(word for word in words if len(word) > 1),
            repetition_penalty=self.number("repetition_penalty", float) or 1.0,
            no_repeat_ngram=self.number("no_repeat_ngram_size", int),
            cleans=self._cleans(),
            **rules,
        )
        if problem := ", ".join(self._asked(self._not_done())):
            raise self.refused(problem)
        overridden = ", ".join(self._asked(OVERRIDDEN))
        ended = f"ends at {', '.join(map(str, ends))}" if ends else "nothing ends a text"
        beside = f"; greedy, so overridden: {overridden}" if overridden else ""
        most = most_places(self.config) if start else None
        return GenerationFacts(all_rules, most, "", f"{self.where}: {ended}{beside}")

    def _cleans(self) -> bool:
        """Tell whether the library's tokenizer cleans up spaces when it decodes."""
        tokenizer: Any = library_tokens(self._folder, "").tokenizer
        ids = tokenizer(_SPACED, add_special_tokens=False)["input_ids"]
        plain = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return bool(tokenizer.decode(ids) != plain)

    def _not_done(self) -> Iterable[str]:
        """Return the settings that the library's `generate` applies but our loop does not."""
        known = {*self.usual, *inspect.signature(self.module.generate).parameters}
        left = sorted(known - _DONE - {*OVERRIDDEN})
        return [key for key in left if not key.startswith(_SILENT)]

    def _asked(self, keys: Iterable[str]) -> Iterator[str]:
        """Yield those whose value asks for something, neither empty nor what changes nothing."""
        for key in keys:
            value = self.values.get(key)
            is_one = type(value) in (int, float) and value == 1
            if value and not is_one and value != self.usual.get(key):
                yield f"{key} {preview(value)}"

    def refused(self, what: str) -> JobError:
        """Return the error of a setting that is not supported."""
        return JobError(f"model.path: {self.where}: {what}: task 'generate' does not do that")

    def start(self) -> tuple[int, ...]:
        """Return the token that a decoder begins with.

        Raises:
            JobError: There is none.
        """
        ids = self.ids("decoder_start_token_id") or self.ids("bos_token_id")
        if not ids:
            raise self.refused("no decoder_start_token_id")
        return ids[:1]

    def ids(self, key: str) -> tuple[int, ...]:
        """Return the token ids of a setting; () if there is none."""
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [value]
        return () if value is None else self.checked_ids(key, listed)

    def checked_ids(self, key: str, value: Any) -> tuple[int, ...]:
        """Return checked token ids, without -1, which means none in old files."""
        from pydantic import Field

        most = self.config.vocab_size
        token = Annotated[int, Field(ge=-1, lt=most)]
        listed = checked(value, key, self.where, list[token], max_length=most)
        return tuple(number for number in listed if number != -1)

    def number(self, key: str, type_: type) -> Any:
        return read_value(self.values, key, self.where, type_, 0, ge=0, le=_MOST)


def most_places(config: Any) -> int | None:
    """Return the number of a decoder's positions; None if its configuration has none.

    T5 and its relatives have relative positions; the `n_positions` of some is not a limit.
    """
    most = getattr(config, "max_target_positions", None)
    most = getattr(config, "max_position_embeddings", None) if most is None else most
    has_any = hasattr(config, "relative_attention_num_buckets")
    return most if isinstance(most, int) and most > 0 and not has_any else None
