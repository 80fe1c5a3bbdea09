"""The texts that a directory's own library writes for a few rows, each row alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline.core.errors import JobError
from pipeline.core.schema import MEAN_LOGPROB
from pipeline.models.directories.facts import DirectoryFacts, LibraryClass
from pipeline.models.directories.files import preview
from pipeline.models.directories.library import quiet
from pipeline.models.directories.text.generation_config import OVERRIDDEN
from pipeline.models.generate.decoding import has_image_tokens, takes_tiles
from pipeline.models.generate.spec import Generation


def written_texts(
    path: Path,
    facts: DirectoryFacts,
    generation: Generation,
    rows: Sequence[Any],
    decode: Callable[[Sequence[int]], str],
) -> pa.Table:
    """Return the text of each row and its mean log probability, as golden rows of the task.

    Args:
        path: The model directory.
        facts: Its facts.
        generation: The number of tokens to write, and the prompt of an image.
        rows: Texts, or the tensors of clips or images, float32 (1, ...).
        decode: Our function that decodes tokens.

    Raises:
        JobError: The library decodes tokens to another text.
    """
    import transformers

    assert isinstance(facts.module, LibraryClass), "it writes"
    cls = getattr(transformers, facts.module.built)
    with quiet():
        model = cls.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        for key in OVERRIDDEN:
            setattr(model.generation_config, key, None)
        options = {
            **{"do_sample": False, "num_beams": 1, "max_new_tokens": generation.max_new_tokens},
            **{"return_dict_in_generate": True, "output_logits": True},
        }
        with torch.inference_mode():
            inputs = [_inputs(facts, model, tokenizer, generation, row) for row in rows]
            written = [_written(model, tokenizer, {**given, **options}, decode) for given in inputs]
    texts, logprobs = zip(*written, strict=True)
    return pa.table({"expected_text": texts, MEAN_LOGPROB: logprobs})


def _inputs(
    facts: DirectoryFacts,
    model: Any,
    tokenizer: Any,
    generation: Generation,
    row: str | torch.Tensor,
) -> Mapping[str, torch.Tensor]:
    """Return the arguments of the library's `generate` for a row."""
    if isinstance(row, str):
        made = tokenizer(row, return_tensors="pt", return_token_type_ids=False)
        return {name: made[name] for name in ("input_ids", "attention_mask")}
    if not has_image_tokens(model.config):
        return {"pixel_values" if facts.input == "image" else model.main_input_name: row}
    pixels = row[:, None] if takes_tiles(model) else row
    return {"pixel_values": pixels, "input_ids": torch.tensor([generation.rules.start])}


def _written(
    model: Any,
    tokenizer: Any,
    given: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str],
) -> tuple[str, float]:
    done = model.generate(**given)
    tokens = done.sequences[0, -len(done.logits) :]
    logprobs = torch.cat(done.logits).float().log_softmax(dim=1)
    text, here = tokenizer.decode(tokens, skip_special_tokens=True), decode(tokens.tolist())
    if text != here:
        raise JobError(
            f"model.path: transformers decodes tokens {preview(tokens.tolist())} to "
            f"{preview(text)}, expected {preview(here)}"
        )
    return text, float(logprobs.gather(1, tokens[:, None]).mean())
