"""In bf16 an encoder with rotary positions is nearer to fp32 where its frequencies stay exact."""

from __future__ import annotations

import copy

import torch

from pipeline.inference.devices.load_runner import exact_frequencies

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
