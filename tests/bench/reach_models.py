"""Tables of transformers classes, small directories of each with random weights, and rows.

No one set of sizes suits every class, so there are several attempts at a class, each with a few
other sizes. A tokenizer, an image processor or a feature extractor lies beside the weights.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from support.models.audio_snapshots import make_listener
from support.models.detector_snapshots import DETECTORS, make_detector
from support.models.language_models import write_language_tokenizer
from support.models.raw_snapshots import BACKBONE, PX, image_model
from support.models.raw_snapshots import SIZES as BLOCKS
from support.models.snapshots import (
    change_json,
    write_image_processor,
    write_json,
    write_tokenizer,
)

from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO, IMAGE, TEXT

TEXTS = ("a cat", "the dog sat on the mat and ran", "", "rain in the city " * 5, "one", "a b c d e")
RATE_HZ, NUM_LABELS = 16_000, 3
PROMPT, ANSWERS = "Review: {text}", {"good": "positive", "bad": "not at all"}
INPUTS_OF = {
    "text": ("input_ids",),
    "image": ("pixel_values",),
    "audio": ("input_values", "input_features"),
}
_LISTENERS = {"ASTForAudioClassification": "ast", "WhisperForAudioClassification": "whisper"}
_DETECTORS = {f"{family.prefix}ForObjectDetection": name for name, family in DETECTORS.items()}
"""Class -> its family among the small directories of the tests, as its sizes depend on others."""
_SIDES = {"deformable_detr": 128}
"""Family -> side of images, in px, whose smallest features have several places."""
_NAMES = {
    1: "attn_layer_offset topk_group",
    2: "num_hidden_layers num_layers n_layer n_layers layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers decoder_num_layers encoder_num_hidden_layers "
    "num_key_value_heads num_kv_heads num_experts_per_tok top_k_experts attn_layer_period "
    "n_group num_group",
    4: "num_attention_heads n_head n_heads num_heads heads encoder_attention_heads "
    "decoder_attention_heads num_experts num_local_experts n_routed_experts linear_num_heads "
    "linear_num_key_heads linear_num_value_heads",
    8: "head_dim d_kv kv_channels attention_head_size patch_size qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim rotary_dim mamba_n_heads mamba_d_head linear_head_dim "
    "linear_key_head_dim linear_value_head_dim",
    16: "intra_bottleneck_size q_lora_rank kv_lora_rank attention_window "
    "num_conv_pos_embeddings classifier_proj_size",
    32: "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size decoder_hidden_size "
    "word_embed_proj_dim moe_intermediate_size shared_expert_intermediate_size image_size",
    64: "intermediate_size d_inner ffn_dim d_ff n_inner hidden_dim encoder_ffn_dim "
    "decoder_ffn_dim ffn_hidden_size",
    160: "max_position_embeddings n_positions n_ctx max_seq_len",
}
SIZES: Mapping[str, Any] = {
    **{name: size for size, names in _NAMES.items() for name in names.split()},
    **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 20], "block_sizes": [2]},
    **{"conv_dim": [16, 16, 16], "conv_kernel": [10, 3, 3], "conv_stride": [5, 4, 4]},
    **{"num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3, "num_queries": 12},
    **{"attention_types": [[["global", "local"], 1]], "mrope_section": [2, 1, 1]},
    **{"default_language": "en_XX", "tie_word_embeddings": False},
}
_DEFAULT = None
"""In an attempt: what the class itself has."""
_LAYERS = dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 4)
_HEADS = {"num_key_value_heads": 4, "num_kv_heads": 4}
_TALL = {"image_size": 64, "hidden_dim": _DEFAULT}
ATTEMPTS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "text": (
        *({}, _HEADS, {**_HEADS, **_LAYERS}, {**_HEADS, **_LAYERS, "head_dim": _DEFAULT}),
        {"num_heads": 8},
        {**_HEADS, **dict.fromkeys(_LAYERS, _DEFAULT)},
    ),
    "image": (
        {},
        _TALL,
        {**_TALL, "patch_size": _DEFAULT},
        {**_TALL, "patch_size": 4, "window_size": 2},
        dict.fromkeys(SIZES, _DEFAULT),
    ),
    "audio": ({},),
}
"""Input -> sizes of each attempt, beside `SIZES`."""
_DEEP = {**BLOCKS, "num_hidden_layers": 4, "image_size": PX, "patch_size": 8}
_NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
_STAGES = {"depths": [1, 1, 1, 1], "out_indices": [1, 2, 3, 4]}
_DPT = {**_DEEP, **_NECK, "backbone_out_indices": [0, 1, 2, 3]}
_ANYTHING = {
    **{"patch_size": 8, "neck_hidden_sizes": [8, 8], "reassemble_hidden_size": 32},
    **{"reassemble_factors": [1, 1], "fusion_hidden_size": 8, "head_hidden_size": 8},
    "backbone_config": {
        **{"model_type": "dinov2", **BLOCKS, "image_size": PX, "patch_size": 8},
        **{"out_indices": [1, 2], "reshape_hidden_states": False},
    },
}
_WINDOWS = {
    **{"image_size": PX, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    **{"window_size": 4, "encoder_stride": 8},
}
_EOMT = {
    **{**BLOCKS, "image_size": PX, "patch_size": 8, "num_queries": 8, "num_blocks": 1},
    **{"num_upscale_blocks": 1, "num_labels": NUM_LABELS},
}
OF_CLASS: Mapping[str, Mapping[str, Any]] = {
    "BeitForSemanticSegmentation": {
        **{**_DEEP, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "num_labels": NUM_LABELS},
    },
    "Data2VecVisionForSemanticSegmentation": {
        **{**_DEEP, "num_hidden_layers": 12, "patch_size": 16, "num_labels": NUM_LABELS},
    },
    "DPTForDepthEstimation": _DPT,
    "DPTForSemanticSegmentation": {**_DPT, "num_labels": NUM_LABELS},
    "DepthAnythingForDepthEstimation": _ANYTHING,
    "PromptDepthAnythingForDepthEstimation": _ANYTHING,
    "ZoeDepthForDepthEstimation": {
        "backbone_config": {
            **{"model_type": "beit", **_DEEP, "out_indices": [1, 2, 3, 4]},
            "reshape_hidden_states": False,
        },
        **{**_NECK, "bottleneck_features": 8, "num_relative_features": 8, "bin_embedding_dim": 8},
        **{"num_attractors": [4, 2, 2, 1], "patch_transformer_hidden_size": 16},
        **{"patch_transformer_intermediate_size": 16, "patch_transformer_num_attention_heads": 2},
        **{"patch_transformer_num_hidden_layers": 1, "reassemble_factors": [4, 2, 1, 0.5]},
    },
    "UperNetForSemanticSegmentation": {
        "backbone_config": {
            **{"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "num_stages": 4},
            **_STAGES,
        },
        **{"hidden_size": 16, "auxiliary_in_channels": 16, "auxiliary_channels": 8},
        **{"pool_scales": [1, 2], "num_labels": NUM_LABELS},
    },
    "Mask2FormerForUniversalSegmentation": {
        "backbone_config": {
            **{"model_type": "swin", "embed_dim": 8, "window_size": 4, "num_heads": [1, 1, 2, 2]},
            **_STAGES,
        },
        **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 8},
        **{"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2},
        **{"dim_feedforward": 16, "encoder_feedforward_dim": 16},
    },
    "EomtForUniversalSegmentation": _EOMT,
    "EomtDinov3ForUniversalSegmentation": _EOMT,
    "SwinForMaskedImageModeling": _WINDOWS,
    "Swinv2ForMaskedImageModeling": _WINDOWS,
    "FocalNetForMaskedImageModeling": {
        **{"image_size": PX, "patch_size": 4, "embed_dim": 8, "hidden_sizes": [8, 16]},
        **{"depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3], "encoder_stride": 8},
    },
    "VitPoseForPoseEstimation": {
        **{"backbone_config": BACKBONE, "num_labels": 5, "use_simple_decoder": True},
    },
}
"""Classes whose sizes depend on one another -> values of their configuration."""
_MOST_NUMBERS = 100_000_000
"""Of a model of the sizes that its class has by default."""
_FILLED = ("head_dim", "num_key_value_heads", "num_experts_per_tok", "default_language")
"""Set even where the class leaves them open."""
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


class Table(NamedTuple):
    """Classes of the library that one task takes."""

    mapping: str
    """Name of the library's table of them."""
    input: str
    fields: Mapping[str, Any]
    """Of the job's section `model`."""


TABLES = {
    "classify": Table("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "text", {"top_k": 3}),
    "tokens": Table("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "text", {}),
    "embed": Table("MODEL_MAPPING_NAMES", "text", {}),
    "choices": Table(
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "text", {"prompt": PROMPT, "choices": ANSWERS}
    ),
    "generate": Table("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "text", {"prompt": PROMPT}),
    "translate": Table("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "text", {"prompt": PROMPT}),
    "images": Table("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "image", {"top_k": 3}),
    "vectors": Table("MODEL_MAPPING_NAMES", "image", {}),
    "detect": Table("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES", "image", {"min_score": 0.0}),
    "sound": Table("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", "audio", {"top_k": 3}),
    **{
        name: Table(f"MODEL_FOR_{mapping}_MAPPING_NAMES", input_name, {})
        for name, (mapping, input_name) in {
            "answers": ("QUESTION_ANSWERING", "text"),
            "follows": ("NEXT_SENTENCE_PREDICTION", "text"),
            "several": ("MULTIPLE_CHOICE", "text"),
            "words": ("MASKED_LM", "text"),
            "segments": ("SEMANTIC_SEGMENTATION", "image"),
            "instances": ("UNIVERSAL_SEGMENTATION", "image"),
            "depths": ("DEPTH_ESTIMATION", "image"),
            "points": ("KEYPOINT_DETECTION", "image"),
            "poses": ("POSE_ESTIMATION", "image"),
            "masks": ("INSTANCE_SEGMENTATION", "image"),
            "normals": ("NORMAL_ESTIMATION", "image"),
            "upscaled": ("IMAGE_TO_IMAGE", "image"),
            "lines": ("TEXT_RECOGNITION", "image"),
            "patches": ("MASKED_IMAGE_MODELING", "image"),
            "voices": ("AUDIO_XVECTOR", "audio"),
            "frames": ("AUDIO_FRAME_CLASSIFICATION", "audio"),
            "speech": ("CTC", "audio"),
        }.items()
    },
}
_RAW = ("answers", "follows", "several", "words", "segments", "instances", "depths", "points",
        "poses", "masks", "normals", "upscaled", "lines", "patches", "voices", "frames",
        "speech")  # fmt: skip
TASKS = dict.fromkeys(_RAW, "raw") | {
    "translate": "generate",
    "images": "classify",
    "vectors": "embed",
    "sound": "classify",
}
"""Names above -> the package's task, where it has another name."""


def classes_of(table: Table) -> list[str]:
    """Return the names of the classes of a table, each once."""
    from transformers.models.auto import modeling_auto

    classes: list[str] = []
    for names in getattr(modeling_auto, table.mapping).values():
        classes += [names] if isinstance(names, str) else list(names)
    return sorted(set(classes))


def small_config(cls: Any, num_tokens: int, attempt: Mapping[str, Any]) -> Any:
    """Return a small configuration of a class, whose sizes may also be those of parts of it."""
    wanted = {name: size for name, size in {**SIZES, **attempt}.items() if size is not _DEFAULT}

    def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                if "model_type" in value:
                    ids = {key: number for key, number in IDS.items() if key in value}
                    changes[name] = {**sizes(value), **ids, "model_type": value["model_type"]}
                elif changed := sizes(value):
                    changes[name] = {**value, **changed}
            elif name in wanted and (value is not None or name in _FILLED):
                are_many, size = isinstance(value, list | tuple), wanted[name]
                if isinstance(size, list) and not are_many:
                    continue
                changes[name] = (
                    size if isinstance(size, list) or not are_many else [size] * len(value)
                )
        if "vocab_size" in values:
            changes["vocab_size"] = num_tokens
        return changes

    made = cls.config_class
    num_labels = 2 if "QuestionAnswering" in cls.__name__ else NUM_LABELS  # start and end
    return made(**{**sizes(made().to_dict()), **IDS, "num_labels": num_labels})


def class_of(name: str, input_name: str) -> Any:
    """Return the class of a name; None: there is none that takes this input.

    One of two towers takes texts, and images as well.
    """
    import transformers

    cls = getattr(transformers, name, None)
    has_towers = hasattr(cls, "get_text_features") and hasattr(cls, "get_image_features")
    is_other = input_name == "image" and has_towers
    takes = getattr(cls, "main_input_name", None) in INPUTS_OF[input_name]
    return cls if is_other or takes else None


def write_class(
    folder: Path, cls: Any, input_name: str, attempt: Mapping[str, Any], *, writes: bool
) -> None:
    """Write the directory of a class.

    Args:
        folder: Of the directory.
        cls: The class.
        input_name: `text`, `image` or `audio`.
        attempt: One of ATTEMPTS.
        writes: It is a language model's.
    """
    name = cls.__name__
    if name in _LISTENERS:
        make_listener(folder, _LISTENERS[name])
        return
    if name in _DETECTORS:
        make_detector(folder, family := _DETECTORS[name])
        if side := _SIDES.get(family):
            size = {"height": side, "width": side}
            change_json(folder / "preprocessor_config.json", size=size)
        return
    if name in OF_CLASS:
        image_model(name, **OF_CLASS[name])(folder)
        return
    num_tokens = 64
    if input_name == "text":
        num_tokens = write_language_tokenizer(folder) if writes else write_tokenizer(folder, "bert")
    elif input_name == "image":
        side = attempt.get("image_size", SIZES["image_size"]) or _side_of(cls)
        crop = {"height": side, "width": side}
        write_image_processor(folder, size={"shortest_edge": side + 4}, crop_size=crop)
    else:
        write_json(folder / "preprocessor_config.json", {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
            "sampling_rate": RATE_HZ, "do_normalize": True})  # fmt: skip
    torch.manual_seed(0)
    config = small_config(cls, num_tokens, attempt)
    with torch.device("meta"):
        num_numbers = sum(parameter.numel() for parameter in cls(config).parameters())
    if num_numbers > _MOST_NUMBERS:
        raise ValueError(f"a model of {num_numbers:,} numbers")
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)


def _side_of(cls: Any) -> int:
    """Return the side of the images that a class takes by default."""
    side = getattr(cls.config_class(), "image_size", None) or 224
    return side if isinstance(side, int) else side[0]


def rows_of(name: str) -> pa.Table:
    """Return rows of the source: texts, photos of noise, or tones."""
    drawn = np.random.default_rng(0)
    if name == "text":
        column = {TEXT: pa.array(TEXTS, pa.large_string())}
    elif name == "image":
        column = {IMAGE: pa.array([_photo(drawn) for _ in range(5)], pa.large_binary())}
    else:
        column = {AUDIO: pa.array([_tone(hz) for hz in (200, 700, 3000)], pa.large_binary())}
    count = len(next(iter(column.values())))
    ids = [str(row) for row in range(count)]
    return pa.table({"row_id": ids, "uri": ids, **column, **failure_columns([None] * count)})


def _photo(drawn: np.random.Generator) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(drawn.integers(0, 255, (40, 52, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _tone(hz: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    seconds = np.arange(RATE_HZ // 2) / RATE_HZ
    soundfile.write(file, np.sin(2 * np.pi * hz * seconds), RATE_HZ, format="WAV")
    return file.getvalue()
