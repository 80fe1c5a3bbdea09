"""What a directory says of writing texts: its `generation_config.json`, otherwise its config.

Outputs are greedy. What changes greedy outputs is done as transformers does it or refused; what
asks for other outputs, such as samples, is overridden, and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.json_files import preview, read_object
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
}
"""They would change greedy outputs."""


def generation_facts(folder: Path, config: Any, *, has_encoder: bool) -> GenerationFacts:
    """Read the rules of a language model's directory; what is refused there becomes `problem`.

    Args:
        folder: The directory.
        config: The library's configuration of its `config.json`.
        has_encoder: Whether the decoder answers to an encoder.
    """
    try:
        return _facts(folder, config, has_encoder=has_encoder)
    except JobError as error:
        return GenerationFacts(Rules(), None, str(error), f"{FILE}: refused for task 'generate'")


def _facts(folder: Path, config: Any, *, has_encoder: bool) -> GenerationFacts:
    values, where = read_object(folder, FILE, optional=True), FILE
    if not values:
        from transformers import GenerationConfig

        values, where = GenerationConfig.from_model_config(config).to_dict(), "config.json"
    read = _Reader(values, where, config.get_text_config(decoder=True).vocab_size)
    ends = read.ids("eos_token_id")
    start = read.ids("decoder_start_token_id") or read.ids("bos_token_id")
    forced = read.ids("forced_bos_token_id")
    words = [read.checked_ids("bad_words_ids", each) for each in values.get("bad_words_ids") or ()]
    words = [word for word in words if len(word) != 1 or word[0] not in ends]
    rules = Rules(
        ends=ends,
        start=start[0] if has_encoder and start else None,
        first=forced[0] if forced else None,
        last=read.ids("forced_eos_token_id"),
        min_length=read.count("min_length"),
        min_new_tokens=read.count("min_new_tokens"),
        banned=(*read.ids("suppress_tokens"), *(w[0] for w in words if len(w) == 1)),
        banned_first=read.ids("begin_suppress_tokens"),
        banned_words=tuple(word for word in words if len(word) > 1),
        repetition_penalty=read.penalty("repetition_penalty"),
        no_repeat_ngram=read.count("no_repeat_ngram_size"),
    )
    for key in ("max_length", "max_new_tokens"):
        read.count(key)
    problem = ", ".join(_asked(values, _NOT_DONE))
    if has_encoder and rules.start is None:
        problem = "no decoder_start_token_id"
    overridden = tuple(_asked(values, _PLAIN))
    ended = f"ends at {', '.join(map(str, ends))}" if ends else "nothing ends a text"
    beside = f"; greedy, so overridden: {', '.join(overridden)}" if overridden else ""
    most = _most_places(config) if has_encoder else None
    if problem:
        raise JobError(f"model.path: {where}: {problem}: task 'generate' does not do that")
    return GenerationFacts(rules, most, "", f"{where}: {ended}{beside}")


def _asked(values: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Yield the keys whose value asks for something, with the value."""
    for key, plain in known.items():
        value = values.get(key)
        if value is not None and value not in plain:
            yield f"{key} {preview(value)}"


def _most_places(config: Any) -> int | None:
    """Return for how many tokens the decoder of a model with an encoder has positions, if it says.

    T5 and its kin have relative positions; what some of them call `n_positions` is no limit.
    """
    text = config.get_text_config(decoder=True)
    found = getattr(text, "max_position_embeddings", None)
    has_any = hasattr(text, "relative_attention_num_buckets")
    return found if isinstance(found, int) and found > 0 and not has_any else None


class _Reader:
    """Reads values, and refuses what they cannot be."""

    def __init__(self, values: Mapping[str, Any], where: str, num_tokens: int) -> None:
        self._values, self._where, self._num_tokens = values, where, num_tokens

    def ids(self, key: str) -> tuple[int, ...]:
        """Return a token id or several of them; () if there is none."""
        found = self._values.get(key)
        if found is None:
            return ()
        return self.checked_ids(key, found if isinstance(found, list) else [found])

    def checked_ids(self, key: str, found: Any) -> tuple[int, ...]:
        """Return a list of token ids as a tuple."""
        if not isinstance(found, list) or len(found) > self._num_tokens:
            raise self._refused(key, found, "token ids")
        # -1 stands for none in old files.
        named = [each for each in found if each != -1]
        for each in named:
            if type(each) is not int or not 0 <= each < self._num_tokens:
                raise self._refused(key, each, f"token ids below {self._num_tokens}")
        return tuple(named)

    def count(self, key: str) -> int:
        """Return a number of tokens; 0 if there is none."""
        found = self._values.get(key)
        if found is None:
            return 0
        most = _MAX_TOKENS if key.startswith(("min", "no")) else _MAX_NUMBER
        if type(found) is not int or not 0 <= found <= most:
            raise self._refused(key, found, f"a whole number from 0 to {most}")
        return found

    def penalty(self, key: str) -> float:
        """Return a positive number; 1 if there is none."""
        found = self._values.get(key)
        if found is None:
            return 1.0
        if type(found) not in (int, float) or not 0 < found <= _MAX_PENALTY:
            raise self._refused(key, found, f"a number above 0, at most {_MAX_PENALTY:g}")
        return float(found)

    def _refused(self, key: str, value: Any, expected: str) -> JobError:
        return JobError(
            f"model.path: {self._where}: {key} is {preview(value)}, expected {expected}"
        )
