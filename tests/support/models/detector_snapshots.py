"""Small directories of transformers detectors with random weights, one of each family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support.models.snapshots import change_json, write_image_processor, write_model

PX = 64
"""Of the processor's config: a square."""
LABELS = {0: "none", 1: "cat", 2: "dog"}
NUM_QUERIES = 12
_STAGES = ["stage2", "stage3", "stage4"]
_HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
_FEED = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
_DETR = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "num_queries": NUM_QUERIES},
    **_HEADS,
    **_FEED,
}
_DAB_DETR = {"hidden_size": 16, **{key: _DETR[key] for key in _DETR if key != "d_model"}}
_RT_DETR = {
    **{"d_model": 16, "encoder_hidden_dim": 16, "num_queries": NUM_QUERIES, "decoder_layers": 2},
    **{"encoder_in_channels": [8] * 3, "decoder_in_channels": [16] * 3, "decoder_n_points": 2},
    **_HEADS,
    **_FEED,
}
_D_FINE = {**_RT_DETR, "max_num_bins": 8, "lqe_hidden_dim": 8, "depth_mult": 0.34}
_GROUPED = {
    **{"d_model": 16, "decoder_layers": 2, "num_queries": NUM_QUERIES, "group_detr": 2},
    **{"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2},
    **{"decoder_ffn_dim": 32, "decoder_n_points": 2, "c2f_num_blocks": 1},
}
_VIT = {"hidden_size": 32, "num_attention_heads": 2}
_RESNET = {
    **{"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "layer_type": "basic"}
}
_LAST = ("ResNetConfig", {**_RESNET, "out_features": ["stage4"]})
_RT = ("RTDetrResNetConfig", {**_RESNET, "out_features": _STAGES})
_HGNET = (
    "HGNetV2Config",
    {
        **{"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4},
        **{"stem_channels": [3, 8, 8], "stage_in_channels": [8] * 4, "stage_mid_channels": [8] * 4},
        **{"stage_out_channels": [8] * 4, "stage_num_blocks": [1] * 4},
        **{"stage_numb_of_layers": [1] * 4, "stage_kernel_size": [3] * 4},
        "out_features": _STAGES,
    },
)
_WINDOWS = (
    "LwDetrViTConfig",
    {
        **{**_VIT, "num_hidden_layers": 4, "image_size": PX, "pretrain_image_size": 32},
        **{"num_windows": 4, "window_block_indices": [0, 2], "out_indices": [2, 4]},
    },
)
_DINO = (
    "RfDetrDinov2Config",
    {
        **{**_VIT, "num_hidden_layers": 3, "image_size": PX, "patch_size": 8, "num_windows": 2},
        "out_features": ["stage2", "stage3"],
    },
)


class Detector(NamedTuple):
    """A family of the library."""

    prefix: str
    """Of its classes."""
    processor: str
    """Prefix of the class of its image processor."""
    values: Mapping[str, Any]
    backbone: tuple[str, Mapping[str, Any]] | None = None
    """Class and values of its configuration."""
    keeps: int = 100
    """How many pairs of query and label its post-processing keeps at most."""


DETECTORS: Mapping[str, Detector] = {
    "detr": Detector("Detr", "Detr", _DETR, _LAST),
    "table-transformer": Detector("TableTransformer", "Detr", _DETR, _LAST),
    "yolos": Detector(
        "Yolos",
        "Yolos",
        {
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"intermediate_size": 64, "image_size": [PX, PX], "patch_size": 8},
            "num_detection_tokens": NUM_QUERIES,
        },
    ),
    "conditional_detr": Detector(
        "ConditionalDetr",
        "ConditionalDetr",
        _DETR,
        ("ResNetConfig", {**_RESNET, "out_features": _STAGES}),
    ),
    "dab-detr": Detector("DabDetr", "ConditionalDetr", _DAB_DETR, _LAST),
    "deformable_detr": Detector(
        "DeformableDetr",
        "DeformableDetr",
        {**_DETR, "d_model": 32},
        ("ResNetConfig", {**_RESNET, "out_features": _STAGES}),
    ),
    "lw_detr": Detector(
        "LwDetr", "DeformableDetr", {**_GROUPED, "projector_scale_factors": [2.0, 0.5]}, _WINDOWS
    ),
    "rf_detr": Detector("RfDetr", "RfDetr", _GROUPED, _DINO, NUM_QUERIES),
    "rt_detr": Detector("RTDetr", "RTDetr", _RT_DETR, _RT, NUM_QUERIES),
    "rt_detr_v2": Detector("RTDetrV2", "RTDetr", _RT_DETR, _RT, NUM_QUERIES),
    "d_fine": Detector("DFine", "RTDetr", _D_FINE, _HGNET, NUM_QUERIES),
    "deimv2": Detector("Deimv2", "RTDetr", _D_FINE, _HGNET, NUM_QUERIES),
}


def make_detector(folder: Path, family: str, **options: Any) -> Path:
    """Write a small directory of a detector of transformers with random weights.

    Args:
        folder: Made if it is not there.
        family: One of DETECTORS.
        options: Of the configuration.
    """
    import transformers

    detector = DETECTORS[family]
    values = {**detector.values, "id2label": LABELS, **options}
    if detector.backbone is not None and "backbone" not in options:
        backbone_config, numbers = detector.backbone
        values = {"backbone_config": getattr(transformers, backbone_config)(**numbers), **values}
    config = getattr(transformers, f"{detector.prefix}Config")(**values)
    write_image_processor(
        folder,
        image_processor_type=f"{detector.processor}ImageProcessor",
        size={"height": PX, "width": PX},
        resample=2,
        do_center_crop=False,
    )
    write_model(folder, getattr(transformers, f"{detector.prefix}ForObjectDetection"), config)
    return folder


def as_published(folder: Path, name: str) -> None:
    """Name a backbone of timm as directories do that were published before transformers 5."""
    change_json(
        folder / "config.json",
        **{"backbone_config": None, "backbone": name, "use_timm_backbone": True},
        use_pretrained_backbone=True,
    )
