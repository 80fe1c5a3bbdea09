"""Small models that write to clips and images, and what transformers writes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO, IMAGE
from pipeline.job.model import Generate, Model
from pipeline.job.transform import Transform
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.preprocessing.model_input import Limits
from support.inputs.clips import encoded, tone
from support.inputs.encoded import encode
from support.models.audio_snapshots import FAMILIES as HEARD
from support.models.language_models import (
    ENDS,
    NEW_TOKENS,
    Written,
    greedy,
    plain_norms,
    write_language_tokenizer,
)
from support.models.snapshots import (
    write_image_processor,
    write_json,
    write_model,
    write_tiling_processor,
)
from support.runs.jobs import job_over

CONTROL = ("<|start|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>")
"""Of Whisper, the last tokens of its tokenizer."""
LANGUAGES = ("<|en|>", "<|de|>")
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 64}  # fmt: skip
_VIT = {**_SIZES, "model_type": "vit", "image_size": 32, "patch_size": 8}
_TROCR = {
    "model_type": "trocr", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "cross_attention_hidden_size": 32,
}  # fmt: skip
_DECODERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    # family: encoder, decoder
    "trocr": (_VIT, _TROCR),
    "vit and gpt2": ({**_VIT, "hidden_size": 16}, {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "vit and bert": (_VIT, {"model_type": "bert", **_SIZES, "max_position_embeddings": 64}),
    "donut": (
        {"model_type": "donut-swin", "image_size": [32, 32], "patch_size": 4, "embed_dim": 16,
         "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
        {"model_type": "mbart", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
         "decoder_ffn_dim": 64, "max_position_embeddings": 64, "add_final_layer_norm": True},
    ),
}  # fmt: skip
SPEECH = ("whisper", "moonshine")
_TILED = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}
_MARKS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<image>")
_LLAVAS = {"llava": "Llava", "vipllava": "VipLlava"}
LOOKERS = {**dict.fromkeys(_LLAVAS, ("<image>",)), **dict.fromkeys(_TILED, _MARKS)}
"""Models with an image in their prompt, which they need -> their control tokens."""
_OF_LLAVA = {"patch_size": 8, "vision_feature_select_strategy": "default",
             "num_additional_image_tokens": 1}  # fmt: skip
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    **{family: _OF_LLAVA for family in _LLAVAS},
    **{family: {"image_seq_len": 16} for family in _TILED},
}
PICTURES = (*_DECODERS, "blip", "git", *LOOKERS)
TILE = Transform(
    size_px=32, resize="stretch", interpolation="lanczos", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
"""What a job gives for a model whose processor makes tiles."""
LOOK = "Review: <image>\nSentiment:"
LOOK_CHAT = (
    "{% for message in messages %}{{ message.role.upper() }}:{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %} {{ part.text }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As that of LLaVA."""


def make_feature_writer(
    folder: Path, family: str, *, text: Mapping[str, Any] | None = None, **generation: Any
) -> Path:
    """Write a small directory of a family and return its path.

    Args:
        folder: Made if it is not there.
        family: One of SPEECH or PICTURES.
        text: More values of the configuration of the language model of LOOKERS.
        generation: More values of `generation_config.json`.
    """
    import transformers

    control = {"whisper": CONTROL, **LOOKERS}.get(family, ())
    size = write_language_tokenizer(folder, ends=family not in LOOKERS, control=control)
    named = {"bos_token_id": 1, "eos_token_id": [*ENDS], "pad_token_id": 0}
    ids = {"vocab_size": size, **named, "eos_token_id": 2}
    name, values = _config_of(family, ids)
    if text:
        values["text_config"] = {**values["text_config"], **text}
    if family == "whisper":
        named |= whisper_tokens(size)
    elif family in _DECODERS or family == "moonshine":
        named["decoder_start_token_id"] = 1
    cls = getattr(transformers, name)
    write_model(folder, cls, cls.config_class(**values))
    plain_norms(folder)
    write_json(folder / "generation_config.json", {**named, **generation})
    if family == "whisper":
        write_json(folder / "preprocessor_config.json", HEARD["whisper"][3])
    elif family == "moonshine":
        extractor = {**HEARD["hubert"][3]}
        write_json(folder / "preprocessor_config.json", extractor)
    elif family in _TILED:
        write_tiling_processor(folder, _TILED[family])
    else:
        write_image_processor(folder)
    if family in LOOKERS:
        (folder / "chat_template.jinja").write_text(LOOK_CHAT)
        write_json(folder / "processor_config.json", _PROCESSORS[family])
    return folder


def whisper_tokens(size: int) -> dict[str, Any]:
    """Return what Whisper's `generation_config.json` says of CONTROL, of so many tokens."""
    start, *languages, transcribe, translate, no_times = range(size - len(CONTROL), size)
    return {
        "decoder_start_token_id": start,
        "lang_to_id": dict(zip(LANGUAGES, languages, strict=True)),
        "task_to_id": {"transcribe": transcribe, "translate": translate},
        "forced_decoder_ids": [[1, None], [2, transcribe]],
        "no_timestamps_token_id": no_times,
        "is_multilingual": True,
        "return_timestamps": False,
        "begin_suppress_tokens": [2],
        "suppress_tokens": [*range(40, 60)],
    }


def _config_of(family: str, ids: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a class, and the values of its configuration."""
    if family == "whisper":
        sizes = {**HEARD["whisper"][2], "decoder_layers": 2, "max_target_positions": 256}
        return "WhisperForConditionalGeneration", {**sizes, **ids}
    if family == "moonshine":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "encoder_num_hidden_layers": 2,
                 "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
                 "decoder_num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
        return "MoonshineForConditionalGeneration", {**sizes, **ids}
    if family == "blip":
        text = {**_SIZES, **ids, "max_position_embeddings": 64, "encoder_hidden_size": 32,
                "sep_token_id": 2, "projection_dim": 16}  # fmt: skip
        vision = {**_SIZES, "image_size": 32, "patch_size": 8, "projection_dim": 16}
        values = {"text_config": text, "vision_config": vision, "projection_dim": 16}
        return "BlipForConditionalGeneration", values
    if family == "git":
        vision = {**_SIZES, "image_size": 32, "patch_size": 8}
        return "GitForCausalLM", {**_SIZES, **ids, "max_position_embeddings": 64,
                                  "vision_config": vision}  # fmt: skip
    if family in _LLAVAS:
        vision = {**_SIZES, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
        text = {**_SIZES, **ids, "model_type": "llama", "max_position_embeddings": 96}
        values = {"vision_config": vision, "text_config": text}
        if family == "vipllava":
            values["vision_feature_layers"] = [-1]
        return f"{_LLAVAS[family]}ForConditionalGeneration", {
            **values,
            "image_token_index": ids["vocab_size"] - 1,
        }
    if family in _TILED:
        vision = {**_SIZES, "image_size": 32, "patch_size": 4}
        text = {**_SIZES, **ids, "model_type": "llama", "max_position_embeddings": 96}
        return f"{_TILED[family]}ForConditionalGeneration", {
            "vision_config": vision, "text_config": text, "scale_factor": 2,
            "image_token_id": ids["vocab_size"] - 1,
        }  # fmt: skip
    encoder, decoder = _DECODERS[family]
    decoder = {**decoder, **ids, "is_decoder": True, "add_cross_attention": True}
    return "VisionEncoderDecoderModel", {
        "encoder": dict(encoder), "decoder": decoder, "decoder_start_token_id": 1,
        "pad_token_id": 0,
    }  # fmt: skip


def feature_writing(
    path: Path, generate: Mapping[str, Any] | None = None, **model: Any
) -> ModelSpec:
    """Return the model of a job over clips, or over images."""
    options = Generate(**{"max_new_tokens": NEW_TOKENS, **(generate or {})})
    if _family_of(path) in LOOKERS and "messages" not in model:
        model = {"prompt": LOOK, **model}
    section = Model(path=str(path), task="generate", generate=options, **model)
    hears = (path / "generation_config.json").exists() and _hears(path)
    transform = TILE if _family_of(path) in _TILED else Transform()
    return resolve_model(job_over("audio" if hears else "image", section, transform=transform))


def _family_of(path: Path) -> str:
    return str(json.loads((path / "config.json").read_text())["model_type"])


def pixels_of(folder: Path, features: Any) -> Any:
    """Return normalised images (B, 3, H, W) as the library's class takes them."""
    return features[:, None] if _family_of(folder) in _TILED else features


def library_prompt(folder: Path, prompt: str, messages: Sequence[Any] = ()) -> list[int]:
    """Return the tokens of a prompt with an image, or of messages, by the library's processor."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    if messages:
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    options = {"do_image_splitting": False} if _family_of(folder) in _TILED else {}
    made = processor(images=Image.new("RGB", (40, 36)), text=prompt, **options)
    return list(made["input_ids"][0])


def _hears(path: Path) -> bool:
    return "feature_extractor_type" in (path / "preprocessor_config.json").read_text()


CLIPS = tuple(
    encoded(tone(duration_s, hz), subtype="FLOAT")
    for duration_s, hz in ((0.7, 300), (0.4, 700), (0.7, 1_200), (1.3, 90), (0.4, 2_500), (1.0, 50))
)


def images(count: int = 6) -> tuple[bytes, ...]:
    """PNGs of 40 x 36 pixels, no two alike."""
    drawn = np.random.default_rng(5)
    pixels = drawn.integers(0, 255, (count, 3, 3, 3), np.uint8).repeat(12, 1).repeat(14, 2)
    return tuple(encode(Image.fromarray(array), "PNG") for array in pixels)


def prepared_features(spec: ModelSpec, data: Sequence[bytes]) -> pa.Table:
    """Return encoded clips or images as a slice of prepared rows."""
    ids = [str(number) for number in range(len(data))]
    name = AUDIO if spec.input.name == "audio" else IMAGE
    columns = {"row_id": ids, "uri": ids, name: pa.array(data, pa.large_binary())}
    rows = pa.table({**columns, **failure_columns([None] * len(data))})
    return spec.input.prepare(rows, {}, Limits(10**6, 10**6))


def library_texts(folder: Path, spec: ModelSpec, rows: pa.Table, **options: Any) -> list[Written]:
    """Write to prepared rows with the library's own `generate`, one by one.

    Args:
        folder: The directory.
        spec: Its input makes the features.
        rows: Of `prepared_features`.
        options: Of `generate`, such as `decoder_input_ids`.
    """
    import torch
    import transformers

    [name] = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    normaliser, outputs = spec.input.normaliser(torch.float32), []
    [values] = spec.input.arrays(rows).values()
    takes = model.main_input_name if spec.input.name == "audio" else "pixel_values"
    for value in values:
        [features] = normaliser(torch.from_numpy(np.array(value))[None])
        given = {takes: features, **options}
        if _family_of(folder) in LOOKERS:
            given[takes] = pixels_of(folder, features)
            assert spec.task.generation is not None
            given["input_ids"] = torch.tensor([spec.task.generation.rules.start])
        outputs.append(greedy(model, tokenizer, given))
    return outputs
