"""Test that a class that needs more of a row than its main input is refused, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from support.models.feature_writers import make_feature_writer
from support.models.snapshots import (
    change_json,
    make_snapshot,
    write_image_processor,
    write_model,
    write_tokenizer,
)
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.models.directories.library import config_of, encoder_of, head_of
from pipeline.models.directories.model_class import require_one_input
from pipeline.models.directories.opening import build_module, read_facts
from pipeline.models.tasks.base import TaskSpec

SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"intermediate_size": 64, "image_size": 32, "patch_size": 8},
}


def judge(name: str) -> None:
    named = getattr(transformers, name)
    config = named.config_class()
    head = head_of(named, config)
    built = named if head != "none" else encoder_of(named, config)
    require_one_input(built, config, head)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LayoutLMForTokenClassification", "clip: bbox; model.factory"),
        ("LayoutLMv2ForSequenceClassification", "bbox, image"),
        ("LayoutLMv3ForTokenClassification", "bbox, pixel_values"),
        ("MarkupLMForSequenceClassification", "xpath_subs_seq, xpath_tags_seq"),
        ("LukeForSequenceClassification", "entity_ids"),
        ("RoCBertModel", "input_pronunciation_ids, input_shape_ids"),
        ("VisualBertModel", "visual_embeds"),
        ("ViltModel", "pixel_values"),
        ("VoxtralForConditionalGeneration", "clips among the tokens of a prompt"),
        ("SamModel", "input_boxes, input_points"),
        ("GroundingDinoModel", "input_ids"),
        ("Siglip2ForImageClassification", "spatial_shapes"),
    ],
)
def test_inputs_beside_the_main_one_are_named(name, words):
    with pytest.raises(JobError, match=f"config.json: {name.split('For')[0]}") as caught:
        judge(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("BertForSequenceClassification", "Gemma3ForSequenceClassification", "BartModel"),
        *("XLNetModel", "LongformerModel", "T5EncoderModel", "DetrForObjectDetection"),
        *(
            "CLIPModel",
            "ClapModel",
            "BlipForConditionalGeneration",
            "LlavaForConditionalGeneration",
        ),
        *("HieraForPreTraining", "ViTModel", "Wav2Vec2Model", "WhisperForConditionalGeneration"),
    ],
)
def test_optional_inputs_that_change_nothing_are_no_reason(name):
    judge(name)


def test_a_directory_of_such_a_class_is_refused(tmp_path):
    path = make_snapshot(tmp_path, "bert")
    config = transformers.LayoutLMConfig(**SMALL, vocab_size=200)
    write_model(path, transformers.LayoutLMForTokenClassification, config)
    with pytest.raises(JobError, match="LayoutLMForTokenClassification needs more of a row"):
        read_facts(path)


def embed(path: Path, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return build_module(path, read_facts(path), TaskSpec("embed"))(pixels)


def test_vectors_of_a_masked_autoencoder_are_whole_images_if_nothing_is_hidden(tmp_path):
    write_image_processor(tmp_path)
    write_model(tmp_path, transformers.ViTMAEModel, transformers.ViTMAEConfig(**SMALL))
    change_json(tmp_path / "config.json", mask_ratio=0.0)
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(embed(tmp_path, pixels), embed(tmp_path, pixels))


def test_a_model_of_images_without_class_token_and_pooler_gives_the_mean(tmp_path):
    write_image_processor(tmp_path)
    write_model(tmp_path, transformers.IJepaModel, transformers.IJepaConfig(**SMALL))
    facts = read_facts(tmp_path)
    assert facts.pooling is not None
    assert (facts.pooling.modes, facts.pooling.known) == (("mean",), ("mean",))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        model = transformers.IJepaModel.from_pretrained(tmp_path)
        expected = model(pixels).last_hidden_state.mean(1)
    torch.testing.assert_close(embed(tmp_path, pixels), expected)


def test_a_model_trained_without_its_class_token_gives_what_its_classifier_sees(tmp_path):
    write_image_processor(tmp_path)
    write_model(tmp_path, transformers.BeitModel, transformers.BeitConfig(**SMALL))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = transformers.BeitModel.from_pretrained(tmp_path)(pixels).pooler_output
    torch.testing.assert_close(embed(tmp_path, pixels), expected)


POOLINGS = {
    # family: sizes, poolings
    "Data2VecVision": (SMALL, ("mean",)),
    "Cvt": ({"embed_dim": [16, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}, ("mean",)),
    "MobileViT": (
        {**SMALL, "hidden_sizes": [8] * 3, "neck_hidden_sizes": [8] * 6 + [24]},
        ("pooler", "mean"),
    ),
}


@pytest.mark.parametrize(
    "family", quick_cases(((name,) for name in POOLINGS), lambda name: name == "MobileViT")
)
def test_poolings_are_those_that_a_model_has_outputs_for(family, tmp_path):
    write_image_processor(tmp_path)
    sizes, poolings = POOLINGS[family]
    config = getattr(transformers, f"{family}Config")(**sizes)
    write_model(tmp_path, getattr(transformers, f"{family}Model"), config)
    facts = read_facts(tmp_path)
    assert facts.pooling is not None
    assert facts.pooling.known == poolings
    assert embed(tmp_path, torch.rand(2, 3, 32, 32)).shape == (2, facts.embedding_dim)


TEXT = {**SMALL, "vocab_size": 120, "max_position_embeddings": 32, "pad_token_id": 0}
THIN = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 32}
TOWERS = {
    "ChineseCLIP": {"text_config": TEXT, "vision_config": SMALL},
    "Align": {"text_config": TEXT, "vision_config": THIN},
}


@pytest.mark.parametrize("family", TOWERS)
def test_vectors_of_texts_are_those_that_the_class_lays_beside_images(family, tmp_path):
    write_tokenizer(tmp_path, "bert", 32)
    config = getattr(transformers, f"{family}Config")(**TOWERS[family], projection_dim=24)
    write_model(tmp_path, getattr(transformers, f"{family}Model"), config)
    model = getattr(transformers, f"{family}Model").from_pretrained(tmp_path)
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with torch.inference_mode():
        module = build_module(tmp_path, read_facts(tmp_path, "text"), TaskSpec("embed"))
        torch.testing.assert_close(module(**inputs), model.get_text_features(**inputs)[1])


def test_a_model_that_only_writes_of_images_has_no_towers(tmp_path):
    path = make_feature_writer(tmp_path, "idefics3")
    writer = transformers.Idefics3ForConditionalGeneration.from_pretrained(path)
    writer.model.save_pretrained(path)
    with pytest.raises(JobError, match="Idefics3Model is a language model that sees images"):
        read_facts(tmp_path)


def test_no_part_of_a_model_keeps_what_it_has_seen():
    parts = {"text_config": {"model_type": "qwen3_5_text"}, "vision_config": {}}
    config = config_of({"model_type": "qwen3_5", **parts})
    assert not config.text_config.use_cache


def test_a_model_that_joins_the_images_of_a_batch_is_refused(tmp_path):
    write_image_processor(tmp_path)
    write_model(
        tmp_path, transformers.PixtralVisionModel, transformers.PixtralVisionConfig(**SMALL)
    )
    with pytest.raises(JobError, match="PixtralVisionModel gives no vector per image"):
        read_facts(tmp_path)
