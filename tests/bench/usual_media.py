"""The models of images and of sound that people have, by name: small directories as published."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reach_models import OF_CLASS
from support.models.audio_snapshots import make_listener, make_transcriber
from support.models.detector_snapshots import as_published, make_detector
from support.models.feature_writers import LOOK, make_feature_writer
from support.models.onnx_files import save, yolo_model
from support.models.prompted_snapshots import make_prompted
from support.models.raw_snapshots import image_model, make_segmenter, make_speakers
from support.models.snapshots import make_snapshot, make_timm, write_image_processor, write_json
from support.models.timed_writers import make_timed_writer
from usual_texts import WRITES, Step, Usual, config, in_dtype, of_class, settings

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32},
           "do_center_crop": True}  # fmt: skip
ZERO_SHOT: Mapping[str, Any] = {"task": "zero_shot", "prompts": ("a dog", "rain")}
LOOKS: Mapping[str, Any] = {"task": "generate", "prompt": LOOK}
PLAIN: Mapping[str, Any] = {"task": "generate"}


def image(*steps: Step, raw: str = "", file: str = "", **model: Any) -> Usual:
    """Return a model of images."""
    return Usual("image", steps, model, raw, file)


def sound(*steps: Step, raw: str = "", **model: Any) -> Usual:
    """Return a model of sound."""
    return Usual("audio", steps, model, raw)


def pixels(kind: str, **values: Any) -> Step:
    """Return what writes the settings of an image processor of before transformers 4.30."""
    usual = {"do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD}
    return settings("preprocessor_config.json",
                    **{**usual, "feature_extractor_type": f"{kind}FeatureExtractor", **values}
                    )  # fmt: skip


def processed(kind: str, **values: Any) -> Step:
    """Return what writes the settings of an image processor of today."""
    usual = {"do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
             "do_rescale": True, "rescale_factor": 1 / 255}  # fmt: skip
    return settings("preprocessor_config.json",
                    **{**usual, "image_processor_type": f"{kind}ImageProcessor", **values}
                    )  # fmt: skip


def extractor(folder: Path) -> None:
    """Write the settings of Whisper's feature extractor."""
    write_json(folder / "preprocessor_config.json", {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16,
        "sampling_rate": 16_000})  # fmt: skip


def looker(name: str) -> Usual:
    """Return a class of transformers that writes to an image and a prompt."""
    return image(of_class(name, writes=True), write_image_processor, **LOOKS)


def seen(name: str, *steps: Step, **values: Any) -> Usual:
    """Return a class of transformers that takes an image, of values of its configuration if any."""
    return image(image_model(name, **values) if values else of_class(name, "image"), *steps)


def shown(name: str, raw: str = "") -> Usual:
    """Return a class whose outputs are columns, in the sizes of `make reach`."""
    return image(image_model(name, **OF_CLASS[name]), task="raw", raw=raw)


def yolo(folder: Path) -> None:
    """Write YOLO as ultralytics exports it."""
    folder.mkdir(parents=True, exist_ok=True)
    save(yolo_model("places"), folder / "yolo.onnx")


def detector(family: str, *steps: Step) -> Usual:
    """Return a detector of one fixed size."""
    return image(partial(make_detector, family=family), *steps, task="detect")


IMAGES: Mapping[str, Usual] = {
    "google/vit-base-patch16-224": seen("ViTForImageClassification", pixels("ViT", size=32)),
    "nsfw_image_detection": seen(
        "ViTForImageClassification", processed("ViT", **SQUARE), config(
            id2label={"0": "normal", "1": "nsfw", "2": "other"},
            label2id={"normal": "0", "nsfw": "1", "other": "2"})),
    "dinov2-base": seen("Dinov2Model", processed("Bit", **CROPPED, do_convert_rgb=True)),
    "dinov3-vits16": seen(
        "DINOv3ViTModel", processed("DINOv3ViT", **SQUARE, image_processor_type="DINOv3ViTImageProcessorFast")),  # noqa: E501
    "convnext-tiny-224": seen(
        "ConvNextForImageClassification", pixels("ConvNext", size=32, crop_pct=0.875, resample=3),
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3),
    "resnet-50": seen(
        "ResNetForImageClassification", pixels("ConvNext", size=32, crop_pct=0.875, resample=3)),
    "swin-tiny-patch4-window7-224": seen(
        "SwinForImageClassification", pixels("ViT", size=32, resample=3), image_size=32,
        embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3),
    "beit-base-patch16-224": seen(
        "BeitForImageClassification", pixels("Beit", size=32, crop_size=32, do_center_crop=False)),
    "deit-base-distilled-patch16-224": seen(
        "DeiTForImageClassificationWithTeacher",
        pixels("DeiT", size=36, crop_size=32, do_center_crop=True, resample=3)),
    "efficientnet-b0": seen(
        "EfficientNetForImageClassification",
        processed("EfficientNet", **SQUARE, do_center_crop=False, include_top=True, resample=0),
        width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, image_size=32),
    "mobilenet_v2_1.0_224": seen(
        "MobileNetV2ForImageClassification", processed("MobileNetV2", **CROPPED, resample=2)),
    "mobilevit-small": seen(
        "MobileViTForImageClassification",
        settings("preprocessor_config.json", feature_extractor_type="MobileViTFeatureExtractor",
                 do_center_crop=True, do_flip_channels=True, do_resize=True, resample=2,
                 crop_size=32, size=36)),
    "levit-128S": seen(
        "LevitForImageClassification", pixels("Levit", size=224, do_center_crop=True, resample=3),
        hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1],
        key_dim=[4, 4, 4]),
    "timm/resnet50": image(partial(make_timm, name="resnet10t", num_classes=3)),
    "timm/vit_small_patch16_224": image(
        partial(make_timm, name="vit_tiny_patch16_224", num_classes=0, img_size=32)),
    "clip-vit-base-patch32": image(partial(make_snapshot, family="clip"), **ZERO_SHOT),
    "clip-vit-base-patch32, vectors": image(partial(make_snapshot, family="clip"), task="embed"),
    "CLIP-ViT-H-14-laion2B": image(
        partial(make_snapshot, family="clip"), in_dtype(torch.float16), **ZERO_SHOT),
    "siglip-base-patch16-224": image(
        partial(make_snapshot, family="siglip", max_tokens=64), **ZERO_SHOT),
    "siglip2-base-patch16-224": image(
        partial(make_snapshot, family="siglip"), task="embed"),
    "depth-anything-v2-small": shown("DepthAnythingForDepthEstimation", "depths"),
    "dpt-large": shown("DPTForDepthEstimation", "depths"),
    "segformer-b0-finetuned-ade-512-512": image(make_segmenter, task="raw", raw="segments"),
    "mask2former-swin-tiny-coco-instance": shown(
        "Mask2FormerForUniversalSegmentation", "instances"),
    "clipseg-rd64-refined": image(
        of_class("CLIPSegForImageSegmentation", "image"), task="raw"),
    "sam-vit-base": image(of_class("SamModel", "image"), task="raw"),
    "superpoint": image(of_class("SuperPointForKeypointDetection", "image"), task="raw"),
    "vitpose-base-simple": shown("VitPoseForPoseEstimation"),
    "videomae-base-finetuned-kinetics": image(
        of_class("VideoMAEForVideoClassification", "image"), task="raw"),
}  # fmt: skip

DETECTORS: Mapping[str, Usual] = {
    "detr-resnet-50": image(
        partial(make_detector, family="detr", backbone="resnet10t"),
        partial(as_published, name="resnet10t"),
        pixels("Detr", size=96, max_size=160, format="coco_detection"), task="detect"),
    "table-transformer-detection": detector("table-transformer"),
    "conditional-detr-resnet-50": detector("conditional_detr"),
    "deformable-detr": detector(
        "deformable_detr", processed("DeformableDetr", size={"height": 128, "width": 128})),
    "yolos-tiny": image(
        partial(make_detector, family="yolos"),
        pixels("Yolos", size=96, max_size=160, format="coco_detection"), task="detect"),
    "rtdetr_r50vd": detector("rt_detr"),
    "rtdetr_v2_r18vd": detector("rt_detr_v2"),
    "dfine-small-coco": detector("d_fine"),
    "rf-detr-base": detector("rf_detr"),
    "owlvit-base-patch32": image(partial(make_prompted, family="OwlViT"), task="raw"),
    "owlv2-base-patch16-ensemble": image(partial(make_prompted, family="Owlv2"), task="raw"),
    "grounding-dino-tiny": image(partial(make_prompted, family="GroundingDino"), task="raw"),
    "yolo11n.onnx": image(yolo, file="yolo.onnx"),
}  # fmt: skip

LOOKERS: Mapping[str, Usual] = {
    "trocr-base-printed": image(partial(make_feature_writer, family="trocr"), **PLAIN),
    "donut-base": image(partial(make_feature_writer, family="donut"), **PLAIN),
    "vit-gpt2-image-captioning": image(
        partial(make_feature_writer, family="vit and gpt2"), **PLAIN),
    "blip-image-captioning-base": image(partial(make_feature_writer, family="blip"), **PLAIN),
    "git-base-coco": image(partial(make_feature_writer, family="git"), **PLAIN),
    "llava-1.5-7b-hf": image(partial(make_feature_writer, family="llava"), **LOOKS),
    "idefics3-8b": image(partial(make_feature_writer, family="idefics3"), **LOOKS),
    "SmolVLM-256M-Instruct": image(partial(make_feature_writer, family="smolvlm"), **LOOKS),
    "Qwen2.5-VL-3B-Instruct": looker("Qwen2_5_VLForConditionalGeneration"),
    "paligemma-3b-mix-224": looker("PaliGemmaForConditionalGeneration"),
    "Florence-2-base": looker("Florence2ForConditionalGeneration"),
    "InternVL3-1B-hf": looker("InternVLForConditionalGeneration"),
    "gemma-3-4b-it": looker("Gemma3ForConditionalGeneration"),
}  # fmt: skip

SOUND: Mapping[str, Usual] = {
    "whisper-tiny": sound(partial(make_feature_writer, family="whisper"), **PLAIN),
    "whisper-large-v3": sound(make_timed_writer, in_dtype(torch.float16), **PLAIN),
    "moonshine-tiny": sound(partial(make_feature_writer, family="moonshine"), **PLAIN),
    "wav2vec2-base-960h": sound(partial(make_transcriber, family="wav2vec2")),
    "wav2vec2-large-xlsr-53-english": sound(
        partial(make_transcriber, family="wav2vec2 of layer norm")),
    "hubert-large-ls960-ft": sound(partial(make_transcriber, family="hubert")),
    "wav2vec2-lg-xlsr-en-speech-emotion-recognition": sound(
        partial(make_listener, family="wav2vec2")),
    "hubert-base-superb-ks": sound(partial(make_listener, family="hubert")),
    "wavlm-base-plus-sv": sound(make_speakers, task="raw", raw="voices"),
    "speaker-diarization (wavlm-base-plus-sd)": sound(
        partial(make_speakers, head="ForAudioFrameClassification"), task="raw", raw="frames"),
    "ast-finetuned-audioset-10-10-0.4593": sound(partial(make_listener, family="ast")),
    "whisper-tiny, classifier": sound(partial(make_listener, family="whisper")),
    "larger_clap_general": sound(partial(make_listener, family="clap"), task="embed"),
    "musicgen-small": sound(of_class("MusicgenForConditionalGeneration", writes=True)),
    "bark-small": Usual("text", (of_class("BarkModel", writes=True),), WRITES),
    "Qwen2-Audio-7B-Instruct": sound(
        of_class("Qwen2AudioForConditionalGeneration", writes=True), extractor, **PLAIN),
}  # fmt: skip
