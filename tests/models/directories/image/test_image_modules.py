"""Directories of models of images give what the libraries give: heads, towers, timm, transforms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models.snapshots import (
    VISION_FAMILIES,
    make_snapshot,
    make_timm,
)

from pipeline.core.errors import JobError
from pipeline.models.directories.build import build_module
from pipeline.models.directories.opening import open_facts, read_facts
from pipeline.models.directories.snapshot import open_directory
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.images.transform import TransformSpec

CLOSE = {"atol": 1e-4, "rtol": 0}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["the cat sat", "a long way home by the river"]


def run(path: Path, task: str, pooling: str | None = None) -> torch.Tensor:
    facts = read_facts(path)
    if pooling is not None:
        facts = replace(facts, pooling=replace(facts.pooling, modes=(pooling,)))
    module = build_module(path, facts, TaskSpec(task), {})
    with torch.inference_mode():
        return module(PIXELS)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_an_encoder_of_images_gives_one_vector_each(family, tmp_path):
    from transformers import AutoModel

    path = make_snapshot(tmp_path / "m", family)
    with torch.inference_mode():
        found = AutoModel.from_pretrained(path)(PIXELS)
    vectors = found.last_hidden_state
    if family == "convnext":
        expected, mean = found.pooler_output, vectors.mean((2, 3))
    else:
        expected, mean = vectors[:, 0], vectors.mean(1)
    assert read_facts(path).embedding_dim == expected.shape[1]
    torch.testing.assert_close(run(path, "embed"), expected, **CLOSE)
    torch.testing.assert_close(run(path, "embed", "mean"), mean, **CLOSE)
    with pytest.raises(JobError, match=r"model\.pooling = 'lasttoken': expected one of"):
        open_facts(str(path), {}, "image", "lasttoken")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_both_towers_give_the_features_of_the_library(family, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    path = make_snapshot(tmp_path / "m", family)
    theirs = AutoModel.from_pretrained(path)
    images = read_facts(path)
    assert (images.input, images.tasks, images.text) == ("image", ("embed", "zero_shot"), None)
    with torch.inference_mode():
        expected = theirs.get_image_features(PIXELS).pooler_output
    found = run(path, "embed")
    assert images.embedding_dim == found.shape[1]
    torch.testing.assert_close(found, expected, **CLOSE)

    texts = read_facts(path, "text")
    assert texts.text is not None
    assert texts.text.max_tokens == 16
    module = build_module(path, texts, TaskSpec("embed"), {})
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    if family == "siglip":  # trained with full length and without a mask
        filled = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
        theirs_inputs = {"input_ids": filled["input_ids"]}
    else:
        theirs_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        expected = theirs.get_text_features(**theirs_inputs).pooler_output
        found = module(**{name: inputs[name] for name in texts.text.tensor_names})
    assert texts.embedding_dim == found.shape[1]
    torch.testing.assert_close(found, expected, **CLOSE)
    (path / "tokenizer.json").unlink()
    assert read_facts(path).tasks == ("embed",)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_single_tower_of_images_is_read(family, tmp_path):
    import transformers

    path = make_snapshot(tmp_path / "m", family, "vision")
    facts = read_facts(path)
    theirs = getattr(transformers, facts.architecture).from_pretrained(path)
    with torch.inference_mode():
        found = theirs(PIXELS)
    expected = found.image_embeds if family == "clip" else found.pooler_output
    assert facts.embedding_dim == expected.shape[1]
    torch.testing.assert_close(run(path, "embed"), expected, **CLOSE)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_timm_directory_gives_the_outputs_of_timm(name, tmp_path):
    import timm
    from safetensors.torch import load_file

    options = {"img_size": 32, "depth": 2} if name.startswith("vit") else {}
    path = make_timm(tmp_path / "m", name, num_classes=3, label_names=["a", "b", "c"], **options)
    facts = read_facts(open_directory(str(path))[1])
    assert (facts.kind, facts.labels) == ("timm", ("a", "b", "c"))
    assert facts.tasks == ("classify", "multilabel", "embed")
    assert facts.transform == TransformSpec(
        size_px=32, resize_px=33, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    theirs = timm.create_model(name, num_classes=3, **options).eval()
    theirs.load_state_dict(load_file(path / "model.safetensors"))
    with torch.inference_mode():
        logits = theirs(PIXELS)
        vectors = theirs.forward_head(theirs.forward_features(PIXELS), pre_logits=True)
    torch.testing.assert_close(run(path, "classify"), logits, **CLOSE)
    torch.testing.assert_close(run(path, "embed"), vectors, **CLOSE)
    assert facts.embedding_dim == vectors.shape[1]
