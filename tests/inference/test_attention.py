"""Encoders whose layers see a window: eager attention where exporters need it, otherwise SDPA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models.snapshots import TEXTS, make_snapshot

from pipeline.inference.devices.load_runner import choose_attention
from pipeline.inference.runtimes import REGISTRY
from pipeline.models.directories.opening import build_module, read_facts
from pipeline.models.tasks.base import TaskSpec


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "snapshot"
    return make_snapshot(folder, "modernbert", "sequence", num_labels=3)


def load(path: Path) -> torch.nn.Module:
    return build_module(path, read_facts(path), TaskSpec("classify"))


def chosen(module: Any, runtime: str, device: str, directory: object = "one") -> str:
    spec: Any = SimpleNamespace(runtime=runtime, directory=directory)
    choose_attention(module, spec, torch.device(device))
    implementation: str = module.model.config._attn_implementation
    return implementation


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("runtime", REGISTRY)
def test_only_torch_on_a_gpu_attends_to_windows_by_sdpa(runtime, device, windowed):
    is_torch_on_gpu = device == "cuda" and runtime in ("eager", "compile", "compile-quick")
    assert chosen(load(windowed), runtime, device) == ("sdpa" if is_torch_on_gpu else "eager")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_encoders_without_windows_have_sdpa_everywhere(device, tmp_path):
    module = load(make_snapshot(tmp_path / "m", "bert", "sequence", num_labels=3))
    assert chosen(module, "eager", device) == "sdpa"


def test_attention_stays_as_it_is_in_code_of_ones_own_and_with_capped_scores(windowed):
    module: Any = load(windowed)
    assert chosen(module, "eager", "cuda", directory=None) == "eager"
    module.model.config.attn_logit_softcapping = 50.0
    assert chosen(module, "eager", "cuda") == "eager"


def test_both_attentions_give_the_same_logits_of_padded_texts(windowed):
    from transformers import AutoTokenizer

    texts = [*TEXTS, " ".join(TEXTS)]
    batch = AutoTokenizer.from_pretrained(windowed)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    assert batch["attention_mask"].shape[1] > 32, "padding beyond the window of every token"
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    module: Any = load(windowed)
    with torch.inference_mode():
        eager = module(**inputs)
        assert chosen(module, "eager", "cuda") == "sdpa"
        torch.testing.assert_close(module(**inputs), eager, atol=1e-4, rtol=0)
