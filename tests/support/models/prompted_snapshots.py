"""Small directories of detectors that find what texts name, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from support.models.snapshots import (
    change_json,
    write_image_processor,
    write_model,
    write_tokenizer,
)

PX = 128
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 32}  # fmt: skip


def make_prompted(folder: Path, family: str) -> Path:
    """Write `OwlViT`, `Owlv2` or `GroundingDino`."""
    size = {"height": PX, "width": PX}
    write_image_processor(
        folder,
        image_processor_type=f"{family}ImageProcessor",
        size={"shortest_edge": PX, "longest_edge": 160} if family == "GroundingDino" else size,
        do_center_crop=False,
    )
    count = write_tokenizer(folder, "bert", 16)
    change_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    text = {**_SIZES, "vocab_size": count, "max_position_embeddings": 16}
    config = getattr(transformers, f"{family}Config")(**_settings(family, text))
    write_model(folder, getattr(transformers, f"{family}ForObjectDetection"), config)
    return folder


def _settings(family: str, text: dict[str, Any]) -> dict[str, Any]:
    if family != "GroundingDino":
        vision = {**_SIZES, "image_size": PX, "patch_size": 32}
        return {"text_config": text, "vision_config": vision, "projection_dim": 32}
    return {
        "text_config": {**text, "model_type": "bert"},
        "backbone_config": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1],
                            "num_heads": [1, 1, 2, 2], "window_size": 4, "out_indices": [2, 3, 4]},
        **{"d_model": 32, "num_queries": 8, "encoder_layers": 1, "decoder_layers": 2},
        **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_text_len": 16},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
    }  # fmt: skip
