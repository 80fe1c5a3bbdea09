"""Test that checkpoints load by their key, or that the error names the key that fits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.model_cases import colours_state, refusal, resolve, saved
from torch import nn

from pipeline.core.errors import JobError
from pipeline.job.model import Model
from pipeline.models.spec import load_module
from pipeline.models.weights.state_dict import load_state


def loads(path: str, **model: Any) -> bool:
    """Tell whether the weights of a file are loaded into the module."""
    loaded = load_module(resolve(weights=path, **model)).state_dict()
    return all(torch.equal(loaded[name], value) for name, value in colours_state().items())


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in colours_state().items()}


@pytest.mark.parametrize(
    ("held", "key"),
    [
        ({"model": colours_state(), "epoch": 3}, "model"),
        ({"state_dict": prefixed("module."), "arch": "x"}, "state_dict"),
        ({"model_state_dict": colours_state(), "optimizer": {"lr": 0.1}}, "model_state_dict"),
        ({"ema": prefixed("_orig_mod."), "step": 1}, "ema"),
        ({"state": {"model": prefixed("module._orig_mod.")}, "step": 1}, "state.model"),
        ({"a.b": colours_state(), "step": 1}, "a.b"),
    ],
)
def test_a_checkpoint_names_the_key_that_fits_and_loads_by_it(
    held: dict[str, Any], key: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "ckpt.pth", held)
    message = refusal(weights=path)
    assert f"{path} holds {', '.join(map(repr, held))}: the weights lie under {key!r} " in message
    assert message.endswith(f"(2 of 2 keys fit): set model.weights_key: {key}")
    assert loads(path, weights_key=key)
    assert resolve(weights=path, weights_key=key).to_dict()["weights_key"] == key


def test_of_two_sets_of_weights_both_are_named_and_the_one_that_fits_wins(tmp_path: Path) -> None:
    held = {"model": colours_state(), "ema": colours_state(), "teacher": {"x": torch.zeros(1)}}
    message = refusal(weights=saved(tmp_path / "ckpt.pth", held))
    assert "under 'model' and under 'ema' (2 of 2 keys fit)" in message
    held = {"teacher": {"x": torch.zeros(1)}, "student": colours_state()}
    assert "under 'student' (2 of" in refusal(weights=saved(tmp_path / "ckpt.pth", held))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_prefixes_of_wrappers_are_removed_and_that_is_logged(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pipeline"):
        assert loads(saved(tmp_path / "w.pth", prefixed(prefix)))
    assert f"a prefix of a wrapper ({prefix}head.weight) is left out" in caplog.text


def test_a_module_that_is_itself_called_so_keeps_its_names() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 1)

    module = Wrapped()
    state = {"module.weight": torch.ones(1, 2), "module.bias": torch.ones(1)}
    load_state(module, state, None, "w.pth", "m")
    assert torch.equal(module.module.weight, torch.ones(1, 2))


def test_a_prefix_that_only_some_names_have_is_not_left_out(tmp_path: Path) -> None:
    mixed = {"module.head.weight": colours_state()["head.weight"], "head.bias": torch.zeros(5)}
    assert "1 of 2 tensors missing (head.weight)" in refusal(
        weights=saved(tmp_path / "w.pth", mixed)
    )


@pytest.mark.parametrize(
    ("held", "key", "words"),
    [
        ({"epoch": 3}, None, "holds 'epoch': no tensors by name, so no weights"),
        ({"model": colours_state()}, "ema", "has no such key; it holds 'model'"),
        ({"model": colours_state()}, "model.x.y", "has no such key; it holds 'model'"),
        ({"model": 5}, "model", "holds a int there, expected names and tensors"),
        ({"m": {"deep": colours_state()}}, "m", "the weights lie under 'm.deep' (2 of 2 keys fit)"),
        (
            prefixed("net."),
            None,
            "the file has 'net.' before the names; save them without it: {k.removeprefix('net.')",
        ),
        (
            {"head.weight": torch.zeros(9, 3), "head.bias": torch.zeros(9)},
            None,
            "2 of another shape (head.weight is (9, 3), not (5, 3), head.bias is (9,), not (5,)): "
            "the weights are for 9 outputs and the model is built for 5",
        ),
        (
            {"conv.weight": torch.zeros(9, 3)},
            None,
            "1 unexpected (conv.weight): weights of another",
        ),
        ({**colours_state(), "head.weight": 5}, None, "1 that are no tensors (head.weight)"),
        ({**colours_state(), 1: torch.zeros(1)}, None, "expected names and tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_listed_with_the_likely_reason(
    held: dict[str, Any], key: str | None, words: str, tmp_path: Path
) -> None:
    message = refusal(weights=saved(tmp_path / "w.pth", held), weights_key=key)
    assert words in message
    assert "\n" not in message


def test_names_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.zeros(1) for i in range(200)}
    message = refusal(weights=saved(tmp_path / "w.pth", state))
    assert "200 unexpected (layer0.weight, layer1.weight, layer2.weight and 197 more)" in message
    state = {"a\n2026 ERROR forged\x1b]0;x\x07": torch.zeros(1)}
    assert r"(a 2026 ERROR forged\x1b]0;x\x07)" in refusal(weights=saved(tmp_path / "w.pth", state))


def test_a_key_without_a_file_that_has_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="weights_key has no effect without weights"):
        Model(name="resnet18", weights_key="model")
    with pytest.raises(JobError, match="safetensors hold names and tensors only"):
        resolve(weights="w.safetensors", weights_key="model")


def test_a_spec_without_a_key_is_described_as_ever(tmp_path: Path) -> None:
    """A retry of a partition published before the field existed finds its settings."""
    assert (
        resolve(weights=saved(tmp_path / "w.pth", colours_state())).to_dict()["weights_key"] is None
    )
