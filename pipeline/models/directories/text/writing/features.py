"""How models write that read no text: what the decoders of Whisper, TrOCR, BLIP ... begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.chosen import ModelClass
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.json_files import preview, read_value
from pipeline.models.directories.text.text_facts import TOKENIZER, load_tokenizer
from pipeline.models.directories.text.writing.generation_config import (
    Reader,
    facts_of,
    or_problem,
    reader_of,
    values_of,
)
from pipeline.models.directories.text.writing.image_prompts import FAMILIES, image_prompt_facts

_TASKS = ("transcribe", "translate")
_NO_TIMES = "no_timestamps_token_id"


def speech_facts(folder: Path, chosen: ModelClass) -> GenerationFacts:
    """Read how a model writes down clips of sound; what is refused becomes `problem`.

    Raises:
        JobError: The tokenizer is missing or damaged.
    """
    config = chosen.config
    _require_tokenizer(folder)

    def read() -> GenerationFacts:
        reader = reader_of(folder, config)
        if config.model_type != "whisper":
            return facts_of(reader, config, reader.start())
        start, languages = _whisper_start(reader, config)
        times = reader.ids(_NO_TIMES)
        facts = facts_of(
            *(reader, config, start),
            languages=languages,
            times_from=times[0] + 1 if times else None,
        )
        spoken = [f"the likeliest of {len(languages)} languages"] if languages else []
        begins = ", ".join([str(start[0]), *spoken, *map(str, start[1:])])
        note = f"{facts.note}; begins with {begins}; without timestamps"
        return replace(facts, note=note, is_begun_by_prompt=True)

    return replace(or_problem(read), tokenizer=TOKENIZER)


def image_generation_facts(folder: Path, chosen: ModelClass) -> GenerationFacts:
    """Read how a model writes to images; what is refused becomes `problem`.

    Raises:
        JobError: The tokenizer is missing or damaged.
    """
    config = chosen.config

    _require_tokenizer(folder)

    def read() -> GenerationFacts:
        if config.model_type == "blip":
            # The library's own `generate` of it takes no other file, and the end from here.
            text = config.text_config
            values = {**values_of(text), "eos_token_id": text.sep_token_id}
            reader = Reader(values, "config.json: text_config", text.vocab_size)
            return facts_of(reader, text, _first(reader))
        reader = reader_of(folder, config)
        if config.model_type == "git":
            return facts_of(reader, config, _first(reader))
        if config.model_type in FAMILIES:
            return image_prompt_facts(folder, reader, config)
        facts = facts_of(reader, config, reader.start())
        return replace(facts, is_begun_by_prompt="donut" in config.encoder.model_type)

    return replace(or_problem(read), tokenizer=TOKENIZER)


def _first(read: Reader) -> tuple[int, ...]:
    """Return the token that a text begins with."""
    ids = read.ids("bos_token_id")
    if not ids:
        raise read.problem("no bos_token_id")
    return ids[:1]


def _require_tokenizer(folder: Path) -> None:
    if not (folder / TOKENIZER).is_file():
        raise JobError(
            f"model.path: {TOKENIZER} is missing; save the model's tokenizer there with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
        )
    load_tokenizer(folder / TOKENIZER)


def _whisper_start(read: Reader, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what Whisper's decoder begins with, and the languages that are tried behind the first.

    As `WhisperGenerationMixin._retrieve_init_tokens` has it: the language and the task that are
    set, otherwise `forced_decoder_ids`; a language that nothing says is the likeliest.
    """
    values, [start] = read.values, read.start()
    task, language = values.get("task"), values.get("language")
    known = _ids_of(read, "lang_to_id")
    places: dict[int, int | None] = {}
    if task is None and language is None:
        places = _forced(read, values.get("forced_decoder_ids"))
        places = places or _forced(read, getattr(config, "forced_decoder_ids", None))
    spoken, languages = places.pop(1, None), tuple[int, ...]()
    if language is not None:
        spoken = known.get(_language(language))
        if spoken is None:
            raise read.problem(f"language {preview(language)}, which lang_to_id does not have")
    elif spoken is None:
        languages = tuple(known.values())
    ids = [start, *([] if spoken is None else [spoken])]
    ids += [number for number in places.values() if number is not None]
    tasks = _ids_of(read, "task_to_id")
    if task is not None:
        if task not in _TASKS or task not in tasks:
            raise read.problem(f"task {preview(task)}, which task_to_id does not have")
        ids.append(tasks[task])
    elif language is not None and tasks and not {*ids} & {*tasks.values()}:
        if _TASKS[0] not in tasks:
            raise read.problem(f"task_to_id without {_TASKS[0]}")
        ids.append(tasks[_TASKS[0]])
    for number in read.ids(_NO_TIMES):
        ids += [number] * (ids[-1] != number)
    return tuple(ids), languages


def _language(name: Any) -> str:
    """Return a key of `lang_to_id`, `<|en|>`, of that or of `en` or `english`."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    plain = str(name).lower()
    return plain if plain.startswith("<|") else f"<|{TO_LANGUAGE_CODE.get(plain, plain)}|>"


def _ids_of(read: Reader, key: str) -> Mapping[str, int]:
    """Return token ids by name; {} if there are none."""
    ids: dict[str, int] = read_value(read.values, key, read.where, dict, {})
    read.checked_ids(key, [*ids.values()])
    return ids


def _forced(read: Reader, value: Any) -> dict[int, int | None]:
    """Return place -> token of `forced_decoder_ids`, [place, token or null] each, from place 1 on.

    As in the library, those that begin at another place are left aside.
    """
    key = "forced_decoder_ids"
    if not value:
        return {}
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise read.refused(key, value, "a list of [place, token]")
    read.checked_ids(key, [number for _, number in pairs if number is not None])
    if pairs[0][0] != 1:
        return {}
    if [place for place, _ in pairs] != [*range(1, len(pairs) + 1)]:
        raise read.refused(key, value, "places from 1 on, one after the other")
    return dict(pairs)
