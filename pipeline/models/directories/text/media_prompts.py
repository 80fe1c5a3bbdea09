"""Read how models write to clips and images: how the decoders of Whisper, TrOCR, BLIP ... begin."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories import probes
from pipeline.models.directories.facts import GenerationFacts
from pipeline.models.directories.files import TOKENIZER
from pipeline.models.directories.library import library_errors, quiet
from pipeline.models.directories.model_class import ModelClass
from pipeline.models.directories.text.generation_config import (
    Reader,
    most_places,
    or_problem,
)
from pipeline.models.directories.text.tokens import load_tokenizer
from pipeline.models.generate.decoding import has_image_tokens, takes_tiles
from pipeline.models.generate.windowed import writes_windows

_NO_TIMES, _LATEST = "no_timestamps_token_id", "max_initial_timestamp_index"
_ANY_LANGUAGE = -1
_TENSORS = {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"}
"""Tensors of a prompt with an image that supported models take."""
_MOST_PLACES = 1 << 20
_READS = "makes no prompt with an image, by its processor's files, for"
_WAY_OUT = (
    "model.factory, with source.inputs, runs it; a directory of its language model alone writes to "
    "texts"
)


def speech_facts(folder: Path, chosen: ModelClass) -> GenerationFacts:
    """Read how a model transcribes clips; a refusal becomes `problem`.

    Raises:
        JobError: The tokenizer is missing or damaged.
    """
    _require_tokenizer(folder)

    def read() -> GenerationFacts:
        reader = Reader(folder, chosen)
        if not hasattr(chosen.module, "_retrieve_init_tokens"):
            return reader.facts(reader.start())
        start, languages = _spoken_start(reader, chosen.config)
        times = reader.ids(_NO_TIMES)
        times_from = times[0] + 1 if times else None
        has_latest = reader.values.get(_LATEST) is not None
        facts = reader.facts(
            start,
            languages=languages,
            times_from=times_from,
            latest_begin=reader.number(_LATEST, int) if has_latest else None,
        )
        spoken = [f"the likeliest of {len(languages)} languages"] if languages else []
        begins = ", ".join([str(start[0]), *spoken, *map(str, start[1:])])
        is_windowed = writes_windows(chosen.module, facts.rules)
        alone = "; longer clips, and with timestamps all, one by one in windows" * is_windowed
        note = f"{facts.note}; begins with {begins}; without timestamps{alone}"
        return replace(facts, note=note, writes_windows=is_windowed)

    return replace(or_problem(read), tokenizer=TOKENIZER)


def _spoken_start(reader: Reader, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that Whisper's decoder begins with, and the languages to choose from.

    They come from the library; where it would ask the model for the language, the likeliest one
    follows the first token.
    """
    import torch

    reader.start()
    module = copy.copy(reader.module)
    module._modules = {"anything": torch.nn.Linear(1, 1)}  # parameters on the CPU
    module.detect_language = lambda **_: torch.tensor([_ANY_LANGUAGE])
    reader.made.return_timestamps = getattr(reader.made, "return_timestamps", False)
    try:
        ids = module._retrieve_init_tokens(
            input_features=torch.zeros(1, 1, 1, device="cpu"),
            batch_size=1,
            generation_config=reader.made,
            config=config,
            num_segment_frames=0,
            kwargs={},
        )
    except Exception as error:  # the library checks values in many ways
        raise reader.failed(error) from error
    begins = ids[0].tolist()
    known = reader.values.get("lang_to_id") if _ANY_LANGUAGE in begins else None
    languages = reader.checked_ids("lang_to_id", [*(known or {}).values()])
    return reader.checked_ids("decoder_start_token_id", begins), languages


def image_generation_facts(folder: Path, chosen: ModelClass) -> GenerationFacts:
    """Read how a model describes images; a refusal becomes `problem`.

    Raises:
        JobError: The tokenizer is missing or damaged.
    """
    _require_tokenizer(folder)

    def read() -> GenerationFacts:
        reader = Reader(folder, chosen)
        if (decoder := getattr(chosen.module, "text_decoder", None)) is not None:
            # BLIP's own `generate` uses only the rules of its decoder, and this end.
            reader.values = {
                **decoder.generation_config.to_dict(),
                "eos_token_id": reader.config.sep_token_id,
            }
        if has_image_tokens(chosen.config):
            return _image_prompt_facts(folder, reader, chosen)
        return reader.facts(reader.start())

    return replace(or_problem(read), tokenizer=TOKENIZER)


def _image_prompt_facts(folder: Path, reader: Reader, chosen: ModelClass) -> GenerationFacts:
    """Return how a model writes whose prompt has an image among its tokens."""
    from transformers import AutoProcessor

    ids, shapes, tensors = [], set(), set[str]()
    with library_errors(f"{_READS} {chosen.named.__name__}", _WAY_OUT):
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        mark = str(processor.image_token)
        for image in probes.images():
            made = with_image(processor, mark, image)
            ids.append(made["input_ids"][0].tolist())
            shapes.add(tuple(made["pixel_values"].shape))
            tensors |= {*made}
    if beside := ", ".join(sorted(tensors - _TENSORS)):
        raise JobError(
            f"model.path: {chosen.named.__name__} reads images and texts, and its library gives it "
            f"{beside} as well; {_WAY_OUT}"
        )
    counts = sorted({*map(len, ids)})
    if len(shapes) > 1 or len(counts) > 1:
        raise JobError(
            f"model.path: {chosen.named.__name__} reads an image in a prompt as "
            f"{' or '.join(map(str, counts))} tokens, by its size; expected one number of them; "
            f"{_WAY_OUT}"
        )
    *axes, height, width = shapes.pop()
    if height != width or axes != ([1, 1, 3] if takes_tiles(chosen.module) else [1, 3]):
        raise JobError(
            f"model.path: {chosen.named.__name__} reads an image as numbers of shape "
            f"{(*axes, height, width)}, expected one square image; {_WAY_OUT}"
        )
    most = most_places(reader.config) or _MOST_PLACES
    [(_, count)] = Counter(ids[0]).most_common(1)
    if len(ids[0]) >= most:
        raise JobError(f"model.path: an image is {count} tokens of {most} places; expected fewer")
    facts = reader.facts(())
    return replace(
        facts,
        most_places=most,
        note=f"{facts.note}; {count} tokens of the prompt are the image",
        image_mark=mark,
        image_px=height,
    )


def with_image(processor: Any, prompt: str, image: bytes) -> Any:
    """Return a processor's tensors of a prompt with an image, which is one tile.

    Args:
        processor: The library's processor of images and texts.
        prompt: Contains the mark of an image once.
        image: Encoded.
    """
    from PIL import Image

    options: dict[str, Any] = {}
    begins = processor.tokenizer.bos_token
    if begins and prompt.startswith(begins):  # as the library does with a chat
        options["add_special_tokens"] = False
    if hasattr(processor.image_processor, "do_image_splitting"):
        options["do_image_splitting"] = False
    with quiet():
        opened = Image.open(BytesIO(image)).convert("RGB")
        return processor(images=opened, text=prompt, return_tensors="pt", **options)


def _require_tokenizer(folder: Path) -> None:
    if not (folder / TOKENIZER).is_file():
        raise JobError(
            f"model.path: {TOKENIZER} is missing; save the model's tokenizer there with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
        )
    load_tokenizer(folder / TOKENIZER)
