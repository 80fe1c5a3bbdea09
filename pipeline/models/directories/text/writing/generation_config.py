"""What a directory says of writing texts: its `generation_config.json`, otherwise its config.

Outputs are greedy. What changes greedy outputs is done as transformers does it or refused; what
asks for other outputs, such as samples, is overridden, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.json_files import checked, preview, read_object, read_value
from pipeline.models.generation import Rules

FILE = "generation_config.json"
_MAX_NUMBER, _MAX_TOKENS, _MAX_PENALTY = 1 << 24, 1 << 20, 100.0
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    # Key -> values that ask for nothing, beside null.
    "do_sample": (False,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "max_length": (20,),
    "max_new_tokens": (),
    "max_time": (),
    "temperature": (1.0,),
    "top_k": (0, 50),
    "top_p": (1.0,),
    "min_p": (),
    "typical_p": (1.0,),
    "penalty_alpha": (),
    "num_beam_groups": (1,),
    "prompt_lookup_num_tokens": (),
}
"""Overridden."""
_NOT_DONE: Mapping[str, tuple[Any, ...]] = {
    "sequence_bias": (),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1.0,),
    "exponential_decay_length_penalty": (),
    "stop_strings": (),
    "token_healing": (False,),
    "watermarking_config": (),
    "constraints": (),
    "force_words_ids": (),
    "dola_layers": (),
    "remove_invalid_values": (False,),
    "return_timestamps": (False,),
    "return_token_timestamps": (False,),
    "compression_ratio_threshold": (),
    "logprob_threshold": (),
    "no_speech_threshold": (),
}
"""They would change greedy outputs."""


def generation_facts(folder: Path, config: Any, *, has_encoder: bool) -> GenerationFacts:
    """Read the rules of a language model's directory; what is refused there becomes `problem`.

    Args:
        folder: The directory.
        config: The library's configuration of its `config.json`.
        has_encoder: Whether the decoder answers to an encoder.
    """

    def read() -> GenerationFacts:
        reader = reader_of(folder, config)
        return facts_of(reader, config, reader.start() if has_encoder else ())

    return or_problem(read)


def or_problem(read: Callable[[], GenerationFacts]) -> GenerationFacts:
    """Return what is read; if that is refused, facts that say why."""
    try:
        return read()
    except JobError as error:
        return GenerationFacts(Rules(), None, str(error), f"{FILE}: refused for task 'generate'")


def reader_of(folder: Path, config: Any) -> Reader:
    """Return the values of a directory's `generation_config.json`, otherwise of its config."""
    values: Mapping[str, Any] = read_object(folder, FILE, optional=True)
    where = FILE
    if not values:
        values, where = values_of(config), "config.json"
    return Reader(values, where, config.get_text_config(decoder=True).vocab_size)


def values_of(config: Any) -> Mapping[str, Any]:
    """Return what the library makes of a model's configuration where no file says it."""
    from transformers import GenerationConfig

    values: Mapping[str, Any] = GenerationConfig.from_model_config(config).to_dict()
    return values


def facts_of(read: Reader, config: Any, start: tuple[int, ...], **rules: Any) -> GenerationFacts:
    """Read the rules.

    Args:
        read: The values.
        config: The library's configuration.
        start: The tokens that a decoder begins with; () if the prompt is of tokens.
        rules: Further fields of `Rules`.

    Raises:
        JobError: They are refused.
    """
    values, where = read.values, read.where
    ends = read.ids("eos_token_id")
    forced = read.ids("forced_bos_token_id")
    listed = read_value(values, "bad_words_ids", where, list, [])
    words = [read.checked_ids("bad_words_ids", word) for word in listed]
    words = [word for word in words if len(word) != 1 or word[0] not in ends]
    bounds = {"gt": 0, "le": _MAX_PENALTY}
    penalty = read_value(values, "repetition_penalty", where, float, 1.0, **bounds)
    all_rules = Rules(
        ends=ends,
        start=start,
        first=forced[0] if forced else None,
        last=read.ids("forced_eos_token_id"),
        min_length=read.count("min_length"),
        min_new_tokens=read.count("min_new_tokens"),
        banned=(*read.ids("suppress_tokens"), *(w[0] for w in words if len(w) == 1)),
        banned_first=read.ids("begin_suppress_tokens"),
        banned_words=tuple(word for word in words if len(word) > 1),
        repetition_penalty=penalty,
        no_repeat_ngram=read.count("no_repeat_ngram_size"),
        **rules,
    )
    for key in ("max_length", "max_new_tokens"):
        read.count(key)
    if problem := ", ".join(_requested(values, _NOT_DONE)):
        raise read.problem(problem)
    overridden = tuple(_requested(values, _PLAIN))
    ended = f"ends at {', '.join(map(str, ends))}" if ends else "nothing ends a text"
    beside = f"; greedy, so overridden: {', '.join(overridden)}" if overridden else ""
    most = most_places(config) if start else None
    return GenerationFacts(all_rules, most, "", f"{where}: {ended}{beside}")


def _requested(values: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Yield the keys whose value asks for something, with the value."""
    for key, plain in known.items():
        value = values.get(key)
        if value is not None and value not in plain:
            yield f"{key} {preview(value)}"


def most_places(config: Any) -> int | None:
    """Return for how many tokens the decoder of a model with an encoder has positions, if it says.

    T5 and its kin have relative positions; what some of them call `n_positions` is no limit.
    """
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_target_positions", None)
    most = getattr(text, "max_position_embeddings", None) if most is None else most
    has_any = hasattr(text, "relative_attention_num_buckets")
    return most if isinstance(most, int) and most > 0 and not has_any else None


class Reader:
    """Reads values, and refuses what they cannot be."""

    def __init__(self, values: Mapping[str, Any], where: str, num_tokens: int) -> None:
        """Take the values, the name of their file, and how many tokens there are."""
        self.values, self.where, self._num_tokens = values, where, num_tokens

    def start(self) -> tuple[int, ...]:
        """Return the token that a decoder beside an encoder begins with.

        Raises:
            JobError: There is none.
        """
        ids = self.ids("decoder_start_token_id") or self.ids("bos_token_id")
        if not ids:
            raise self.problem("no decoder_start_token_id")
        return ids[:1]

    def ids(self, key: str) -> tuple[int, ...]:
        """Return a token id or several of them; () if there is none."""
        value = self.values.get(key)
        if value is None:
            return ()
        return self.checked_ids(key, value if isinstance(value, list) else [value])

    def checked_ids(self, key: str, value: Any) -> tuple[int, ...]:
        """Return a list of token ids as a tuple."""
        from pydantic import Field

        token = Annotated[int, Field(ge=-1, lt=self._num_tokens)]
        listed = checked(value, key, self.where, list[token], max_length=self._num_tokens)
        return tuple(
            number for number in listed if number != -1
        )  # which stands for none in old files

    def count(self, key: str) -> int:
        """Return a number of tokens; 0 if there is none."""
        most = _MAX_TOKENS if key.startswith(("min", "no")) else _MAX_NUMBER
        return int(read_value(self.values, key, self.where, int, 0, ge=0, le=most))

    def refused(self, key: str, value: Any, expected: str) -> JobError:
        """Return the error of a value that cannot be."""
        return JobError(f"model.path: {self.where}: {key} is {preview(value)}, expected {expected}")

    def problem(self, what: str) -> JobError:
        """Return the error of what is asked for and not done."""
        return JobError(f"model.path: {self.where}: {what}: task 'generate' does not do that")
