"""Test directories as they are published: parts that the library ignores are ignored here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.models.audio_snapshots import make_listener
from support.models.snapshots import (
    change_json,
    make_snapshot,
    write_image_processor,
    write_model,
    write_tokenizer,
)
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.models.directories.opening import build_module, read_facts
from pipeline.models.tasks.base import TaskSpec

SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": 120},
}
DECODER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
IDS = torch.tensor([[2, 50, 51, 3], [2, 52, 3, 0]])
TEXTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
WEIGHTS = "model.safetensors"


def text_model(name: str, architecture: str | None = None, **values: Any) -> Callable[[Path], Path]:
    """Save a class of transformers beside a tokenizer; the config may name another class."""

    def make(folder: Path) -> Path:
        write_tokenizer(folder, "bert")
        cls = getattr(transformers, name)
        write_model(folder, cls, cls.config_class(**values))
        if architecture is not None:
            change_json(folder / "config.json", architectures=[architecture])
        return folder

    return make


def with_tensors(make: Callable[[Path], Path], **more: torch.Tensor) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        path = make(folder)
        tensors = load_file(path / WEIGHTS)
        save_file({**tensors, **{k.replace("__", "."): v for k, v in more.items()}}, path / WEIGHTS)
        return path

    return changed


def without_tensors(make: Callable[[Path], Path], part: str) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        path = make(folder)
        tensors = load_file(path / WEIGHTS)
        kept = {name: tensor for name, tensor in tensors.items() if part not in name}
        assert len(kept) < len(tensors)
        save_file(kept, path / WEIGHTS)
        return path

    return changed


def with_config(make: Callable[[Path], Path], **values: Any) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        path = make(folder)
        change_json(path / "config.json", **values)
        return path

    return changed


def images(folder: Path) -> Path:
    write_image_processor(folder)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    write_model(folder, transformers.ResNetForImageClassification, config)
    return folder


BERT = text_model("BertForPreTraining", "BertForMaskedLM", **SMALL)
NEOX = text_model("GPTNeoXForSequenceClassification", **SMALL, pad_token_id=0)
MASK = torch.ones(1, 1, 64, 64)
READ: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    # what is published: its maker, the task
    "a second head for training": (BERT, "embed"),
    "masks as BOOL": (
        with_tensors(NEOX, gpt_neox__layers__0__attention__bias=MASK.bool()), "classify"
    ),
    "masks as U8": (
        with_tensors(
            text_model("GPT2ForSequenceClassification", vocab_size=120, **DECODER),
            transformer__h__0__attn__bias=MASK.byte(),
        ),
        "classify",
    ),
    "code of a class that the library has": (
        with_config(
            text_model("NomicBertModel", **SMALL),
            auto_map={"AutoModel": "someone/model--modeling.NomicBertModel"},
        ),
        "embed",
    ),
    "kernels of somebody": (
        with_config(BERT, attn_implementation="someone/kernels", _attn_implementation="flex"),
        "embed",
    ),
    "no class": (with_config(text_model("DebertaV2Model", **SMALL), architectures=None), "embed"),
    "vectors of two halves": (
        text_model("ReformerModel", vocab_size=120, hidden_size=32, attention_head_size=8,
                   axial_pos_embds_dim=[8, 24], axial_pos_shape=[8, 8], feed_forward_size=64,
                   max_position_embeddings=64, num_attention_heads=2, attn_layers=["local"]),
        "embed",
    ),
    "a text without its end is no text": (
        text_model("BartForSequenceClassification", vocab_size=120, d_model=32, encoder_layers=1,
                   decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                   encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
                   pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3),
        "classify",
    ),
    "no vector of masked frames": (
        without_tensors(lambda path: make_listener(path, "wav2vec2"), "masked_spec_embed"),
        "classify",
    ),
    "no count of batches": (without_tensors(images, "num_batches_tracked"), "classify"),
}  # fmt: skip


CLASSIFIERS = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
}
GIVEN = {
    "text": TEXTS,
    "image": {"pixel_values": torch.rand(2, 3, 32, 32)},
    "audio": {"input_values": torch.rand(2, 4_000)},
}


@pytest.mark.parametrize("case", READ)
def test_parts_that_the_library_ignores_are_ignored(case: str, tmp_path: Path):
    make, task = READ[case]
    path = make(tmp_path)
    facts = read_facts(path)
    auto = "AutoModel" if task == "embed" else CLASSIFIERS[facts.input]
    change_json(path / "config.json", attn_implementation=None, _attn_implementation=None)
    library, given = getattr(transformers, auto).from_pretrained(path), GIVEN[facts.input]
    with torch.inference_mode():
        module = build_module(path, facts, TaskSpec(task))
        outputs, ours = library(**given), module(*given.values())
    assert task != "embed" or ours.shape[1] == facts.embedding_dim
    expected = outputs.get("logits")
    if expected is None:
        mask = TEXTS["attention_mask"][:, :, None]
        expected = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_head_that_is_ignored_is_noted(tmp_path: Path):
    notes = read_facts(BERT(tmp_path)).notes
    assert any("tensors of other heads are not used: cls.predictions.bias" in n for n in notes)


REFUSED: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    # what is published: its maker, what is said
    "one vector of a text": (
        text_model("DPRQuestionEncoder", **SMALL), "gives pooler_output, expected last_hidden_state"
    ),
    "speech of a text": (text_model("VitsModel", vocab_size=120), "VitsModel"),
    "a way of computing that a short text changes": (
        text_model("BigBirdModel", **SMALL, block_size=4, num_random_blocks=1),
        "from block_sparse into original_full once it sees a short text",
    ),
    "a weight of another type": (
        with_tensors(text_model("BertModel", **SMALL),
                     encoder__layer__0__attention__self__query__weight=torch.ones(32, 32).char()),
        r"holds tensors of type I8 \(encoder.layer.0.attention.self.query.weight\): quantised",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", quick_cases(((case,) for case in REFUSED), lambda case: case != "speech of a text")
)
def test_a_model_whose_rows_would_fail_is_refused_before_them(case: str, tmp_path: Path):
    make, words = REFUSED[case]
    with pytest.raises(JobError, match=words):
        read_facts(make(tmp_path))


def test_prompts_are_not_served_without_the_scale_that_they_are_compared_by(tmp_path: Path):
    path = make_snapshot(tmp_path / "m", "clip")
    assert read_facts(path, "image").tasks == ("embed", "zero_shot")
    thin = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 32}
    write_model(path, transformers.AlignModel, transformers.AlignConfig(
        text_config=SMALL, vision_config=thin, projection_dim=24))  # fmt: skip
    assert read_facts(path, "image").tasks == ("embed",)


def test_a_model_takes_no_kernels_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are code from the network; transformers takes them by itself from 5.25 on."""
    monkeypatch.delenv("USE_HUB_KERNELS", raising=False)
    path = make_snapshot(tmp_path / "m", "bert")
    module = build_module(path, read_facts(path), TaskSpec("embed"))
    [model] = [p for p in module.modules() if type(p) is transformers.BertModel]
    assert not getattr(model, "use_kernels", False)
