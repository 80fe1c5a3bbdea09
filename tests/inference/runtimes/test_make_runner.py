"""float32 is multiplied as the precision says, whatever a user's module has set before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pipeline.inference.runtimes import make_runner
from pipeline.inference.runtimes.make_runner import exact_math, set_math
from pipeline.inference.runtimes.runtime import EXACT, TF32, math_of

backends = torch.backends


def old_names() -> None:
    backends.cuda.matmul.allow_tf32 = True
    backends.cudnn.allow_tf32 = True


def set_all(value: str) -> None:
    backends.fp32_precision = value


def set_every_flag() -> None:
    backends.cuda.matmul.fp32_precision = TF32
    backends.cudnn.conv.fp32_precision = TF32
    backends.cudnn.rnn.fp32_precision = TF32


def set_cudnn() -> None:
    backends.cudnn.fp32_precision = TF32


WAYS = {
    "as torch begins": lambda: None,
    "old names": old_names,
    "all": lambda: set_all(TF32),
    "each": set_every_flag,
    "cudnn": set_cudnn,
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "all of them": lambda: (set_all(TF32), set_every_flag(), old_names(), set_cudnn()),
}


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    yield
    set_math(EXACT)


def flags() -> list[object]:
    """All that torch itself asks before it multiplies; the names raise where they contradict."""
    return [
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
    ]


def saved_and_restored() -> None:
    """As torch's exporters do it with all flags of a library."""
    cudnn, mkldnn = backends.cudnn.set_flags(False), backends.mkldnn.set_flags(False)
    backends.mkldnn.set_flags(*mkldnn)
    backends.cudnn.set_flags(*cudnn)


def wanted(math: str) -> list[object]:
    return [math] * 3 + [math == TF32] * 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_a_precision_holds_whatever_was_set_before(way: str, precision: str):
    WAYS[way]()
    for _ in range(2):
        set_math(math_of(precision))
        assert flags() == wanted(TF32 if precision == "tf32" else EXACT)
        saved_and_restored()
    if precision != "tf32":
        assert flags() == wanted(EXACT)


@pytest.mark.parametrize("way", WAYS)
def test_the_reference_is_exact_and_what_was_before_comes_back(way: str):
    set_math(TF32)
    with exact_math():
        assert flags() == wanted(EXACT)
        WAYS[way]()  # the reference runs the user's code, too
    assert flags() == wanted(TF32)
    with pytest.raises(KeyError), exact_math():
        raise KeyError
    assert flags() == wanted(TF32)


def test_a_module_that_sets_flags_while_it_is_loaded_does_not_decide(
    monkeypatch: pytest.MonkeyPatch,
):
    from support.runs.predicting import predictor

    seen: list[list[object]] = []
    forward: Callable[..., torch.Tensor] = __import__("models").Colours.forward

    def watched(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        seen.append(flags())
        return forward(self, x)

    monkeypatch.setattr("models.Colours.forward", watched)
    monkeypatch.setattr("models.Colours.train", lambda self, mode=True: (set_every_flag(), self)[1])
    from support.runs.predicting import images, predict, rows_of

    predict(predictor("models:colours"), rows_of(images(3)))
    assert seen
    assert all(flags == wanted(EXACT) for flags in seen)
    assert make_runner._math == EXACT
