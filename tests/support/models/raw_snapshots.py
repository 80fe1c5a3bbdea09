"""Small directories of classes that are no task, but whose outputs can be columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from support.models.snapshots import write_image_processor, write_json, write_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64}  # fmt: skip
PX = 64
BACKBONE = {"model_type": "vitpose_backbone", **SIZES, "image_size": [PX, PX],
            "patch_size": [16, 16], "out_indices": [2]}  # fmt: skip
ENCODER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "strides": [4, 2],
           "hidden_sizes": [16, 32], "patch_sizes": [7, 3], "num_attention_heads": [2, 2],
           "mlp_ratios": [2, 2], "decoder_hidden_size": 32}  # fmt: skip
PEOPLE = {**SIZES, "conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [5, 4],
          "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "tdnn_dim": [32, 32, 32],
          "num_conv_pos_embedding_groups": 4, "tdnn_kernel": [3, 2, 1], "tdnn_dilation": [1, 1, 1],
          "xvector_output_dim": 512, "num_labels": 5, "vocab_size": 40}  # fmt: skip


def image_model(name: str, **values: Any) -> Callable[[Path], Path]:
    """Return what writes a small directory of a class that takes images."""

    def make(folder: Path) -> Path:
        write_image_processor(folder, size={"height": PX, "width": PX}, do_center_crop=False)
        cls = getattr(transformers, name)
        write_model(folder, cls, cls.config_class(**values))
        return folder

    return make


def make_speakers(folder: Path, head: str = "ForXVector") -> Path:
    """Write a small directory of WavLM for the voices of speakers."""
    write_json(folder / "preprocessor_config.json", {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
        "sampling_rate": 16_000, "do_normalize": True})  # fmt: skip
    config = transformers.WavLMConfig(**PEOPLE)
    write_model(folder, getattr(transformers, f"WavLM{head}"), config)
    return folder


def make_segmenter(folder: Path) -> Path:
    """Write a small directory of SegFormer for 7 classes."""
    return image_model("SegformerForSemanticSegmentation", num_labels=7, **ENCODER)(folder)
