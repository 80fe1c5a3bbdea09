"""Test that a model is prepared for its device: SDPA attention, and rotary frequencies in fp32."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models.snapshots import TEXTS, make_snapshot

from pipeline.inference.devices.load_runner import choose_attention, exact_frequencies
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


TOKENS, SIZE = 2048, 64


class CustomRotary(torch.nn.Module):
    """A user's own module: whether it computes in one dtype is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.rand(8))


def encoder() -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3Model  # seconds, when tests are collected

    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=100,
        hidden_size=SIZE,
        intermediate_size=2 * SIZE,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=SIZE,
        max_position_embeddings=TOKENS,
    )
    return Qwen3Model(config).eval()


def test_exact_frequencies_make_the_vectors_of_far_tokens_agree_better():
    exact, plain = encoder(), encoder().to(torch.bfloat16)
    kept = encoder()
    with exact_frequencies(kept):
        kept.to(torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in kept.parameters())
    ids = torch.randint(0, 100, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = exact(input_ids=ids).last_hidden_state
        worst = [
            (model(input_ids=ids).last_hidden_state.float() - wanted).norm(dim=-1).max()
            for model in (kept, plain)
        ]
    assert 1.5 * worst[0] < worst[1]


def test_they_are_fp32_after_the_cast_and_those_of_other_modules_are_cast():
    both = torch.nn.ModuleList([encoder(), CustomRotary()])
    before = copy.deepcopy(both)
    with exact_frequencies(both):
        both.to(torch.bfloat16)
    buffers = dict(both.named_buffers())
    ours = [name for name in buffers if name.startswith("0.")]
    assert ours
    for name in ours:
        assert torch.equal(buffers[name], dict(before.named_buffers())[name])
    assert buffers["1.inv_freq"].dtype == torch.bfloat16
