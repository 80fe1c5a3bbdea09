"""Small directories of Whisper that write timestamps, and what the library's pipeline writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.models.audio_snapshots import FAMILIES
from support.models.language_models import TEXTS_OF_TOKENIZER
from support.models.snapshots import write_json, write_model
from support.models.tiny_tokenizer import byte_level

CONTROL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"),
    *("<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
"""Special tokens in the order of Whisper's tokenizer, behind those of texts."""
STEP_S = 0.02
"""What timestamps are multiples of."""
_TIME_SCALE = 0.6
"""Of the vectors of timestamps beside those of texts; the smaller, the fewer come."""


def make_timed_writer(folder: Path, window_s: int = 2, **generation: Any) -> Path:
    """Write a directory that writes varied texts with timestamps, and return its path.

    Args:
        folder: Made if it is not there.
        window_s: Length of a window; Whisper's is 30 s.
        generation: More values of `generation_config.json`.
    """
    import torch
    import transformers

    plain = json.loads(byte_level(TEXTS_OF_TOKENIZER * 4, (), 400).to_str())["model"]
    merges = [tuple(pair) for pair in plain["merges"]]
    tokenizer = transformers.WhisperTokenizer(plain["vocab"], merges)
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL]})
    tokenizer.save_pretrained(folder)
    broken = [token for token in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([token])]
    end, start, *languages, translate, transcribe, before, _, no_times = (
        tokenizer.convert_tokens_to_ids([*CONTROL])
    )
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    sizes = {
        **FAMILIES["whisper"][2],
        "decoder_layers": 2,
        "max_target_positions": 64,
        "max_source_positions": 50 * window_s,
    }
    num_times = round(window_s / STEP_S) + 1
    config = transformers.WhisperConfig(
        **{**sizes, **ids, "decoder_start_token_id": start, "vocab_size": no_times + 1 + num_times},
    )
    write_model(folder, transformers.WhisperForConditionalGeneration, config)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.fill_(float(name.endswith("weight")))
        tokens = model.model.decoder.embed_tokens.weight
        tokens[no_times + 1 :] *= _TIME_SCALE
    model.save_pretrained(folder)
    rules = {
        **{**ids, "decoder_start_token_id": start, "prev_sot_token_id": before},
        "lang_to_id": dict(zip(CONTROL[2:4], languages, strict=True)),
        "task_to_id": {"transcribe": transcribe, "translate": translate},
        **{"no_timestamps_token_id": no_times, "is_multilingual": True},
        **{"return_timestamps": False, "max_initial_timestamp_index": 25},
        "begin_suppress_tokens": [end],
        "suppress_tokens": [*broken, start, *languages, translate, transcribe, before],
    }
    write_json(folder / "generation_config.json", {**rules, **generation})
    extractor = {**FAMILIES["whisper"][3], "chunk_length": window_s}
    write_json(folder / "preprocessor_config.json", extractor)
    return folder


def library_segments(folder: Path, samples: Any, max_new_tokens: int) -> list[dict[str, Any]]:
    """Return the segments of a clip by the library's `generate` and tokenizer, those with a text.

    Args:
        folder: The directory, with its own `generation_config.json`.
        samples: float32 (T,).
        max_new_tokens: Of a window.
    """
    import transformers

    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    is_long = len(samples) > extract.n_samples
    options = {"truncation": False, "padding": "longest"} if is_long else {}
    rate = extract.sampling_rate
    made = extract(samples, sampling_rate=rate, return_tensors="pt", **options)
    written = model.generate(
        made.input_features,
        return_timestamps=True,
        return_segments=True,
        max_new_tokens=max_new_tokens,
    )
    segments = [
        {
            "start_s": round(float(part["start"]), 2),
            "end_s": round(float(part["end"]), 2),
            "text": tokenizer.decode(part["tokens"], skip_special_tokens=True),
        }
        for part in written["segments"][0]
    ]
    return [segment for segment in segments if segment["text"]]


def library_pipeline(folder: Path) -> Any:
    """Return the library's own pipeline of speech recognition."""
    import transformers

    files = dict.fromkeys(("model", "feature_extractor", "tokenizer"), str(folder))
    return transformers.pipeline("automatic-speech-recognition", **files)
