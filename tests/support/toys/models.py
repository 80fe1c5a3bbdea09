"""Models that tests name as factories: real torch modules, small, with known behaviour.

Input is (N, 3, 32, 32), normalised with mean 0 and std 1, so pixels are in [0, 1].
"""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pyarrow as pa
import torch
from support.models.tiny_tokenizer import token_id
from torch import nn

SIZE_PX = 32
LABELS = ["dark", "bright", "red", "green", "blue"]
WORDS_OF_LABELS = {"dark": "slow", "bright": "fast", "red": "red", "green": "green", "blue": "blue"}
"""Of a text that `mentions` gives the label."""
TRANSFORM = {
    "size_px": SIZE_PX,
    "resize_px": SIZE_PX,
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}


class Colours(nn.Module):
    """Says which colour channel leads, by a fixed linear map of the channel means."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.tensor([[-3.0, -3, -3], [3, 3, 3], [9, -4, -4], [-4, 9, -4], [-4, -4, 9]])
        self.head = nn.Linear(3, len(LABELS))
        self.head.weight.data = weight
        self.head.bias.data = torch.tensor([4.5, -4.5, 0, 0, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))


class Spots(Colours):
    """Finds each colour: a list with a dict per row, as torchvision's detectors give it."""

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        scores = torch.softmax(super().forward(x), dim=1)
        left = torch.arange(len(LABELS), device=x.device, dtype=torch.float32)
        boxes = torch.stack([left, left, left + x.shape[3] / 2, left + x.shape[2] / 2], dim=1)
        labels, masks = torch.arange(len(LABELS)), torch.zeros(len(LABELS), 1, *x.shape[2:])
        shared = {"boxes": boxes, "labels": labels.to(x.device), "masks": masks}
        return [{**shared, "scores": row_scores} for row_scores in scores]


class Fussy(Colours):
    """Raises when a batch holds an image that is nearly black; NaN for a nearly white one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness = x.float().mean(dim=(1, 2, 3))
        if (brightness < 0.02).any():
            raise ValueError("too dark to look at")
        return torch.where((brightness > 0.98)[:, None], torch.nan, super().forward(x))


class Hungry(Colours):
    """Cannot take more than four rows at once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("asked for too much")
        return super().forward(x)


class Slow(Colours):
    """Takes five milliseconds per row, or what is asked for, so that a run can be met at work."""

    def __init__(self, row_s: float = 0.005) -> None:
        super().__init__()
        self._row_s = row_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self._row_s * len(x))
        return super().forward(x)


class Deadly(Colours):
    """Ends or stops its process over an image that one colour fills, alone or in a batch.

    The signal is for the thread that computes, as that of a bad access is: one for the process may
    reach another thread, and this one would go on for as long as Ray's handler writes its trace.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for red, green, blue in (x.mean(dim=(2, 3)) * 255).round().int().tolist():
            match (red, green, blue):
                case (255, 0, 255):
                    signal.raise_signal(signal.SIGSEGV)
                case (255, 255, 0):
                    os._exit(3)
                case (0, 255, 255):
                    time.sleep(1e6)
                case (255, 255, 255):
                    raise MemoryError("asked for too much")
                case (0, 0, 0):
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Unloadable(Colours):
    """Ends every process that makes it."""

    def __init__(self) -> None:
        signal.raise_signal(signal.SIGSEGV)


class Counting(Colours):
    """Leaves a file per loaded model, so that a test can see that none was loaded."""

    def __init__(self) -> None:
        super().__init__()
        folder = os.environ["TEST_MODEL_LOADS"]
        with open(os.path.join(folder, str(os.getpid())), "w"):
            pass


class Coarse(Colours):
    """Says something else where it computes in fewer bits than float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits if x.dtype == torch.float32 else -logits


class Channels(nn.Module):
    """Gives the channel means, several ways at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Identity()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        means = self.pool(x).flatten(1)
        return {"means": means, "grey": means.mean(dim=1), "grid": x[:, :2, :3, 0]}


class Redness(nn.Module):
    """One number: how far red is above blue, up to 8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3))
        return 8 * (means[:, :1] - means[:, 2:])


class Sums(nn.Module):
    """For features: their sum and their largest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sum(dim=1), x.max(dim=1).values], dim=1)


class ScaledSums(Sums):
    """Five numbers for features, from weights that may be others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True) * self.scale


class Mentions(nn.Module):
    """For texts of `tiny_tokenizer`: the label whose word they hold, (B, L) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        ids = [token_id(word) for word in WORDS_OF_LABELS.values()]
        self.words = nn.Parameter(torch.tensor(ids, dtype=torch.float32), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        is_word = (input_ids[:, :, None] == self.words) & (attention_mask[:, :, None] == 1)
        return 8.0 * is_word.any(dim=1).to(self.words.dtype)


class Several(nn.Module):
    """Of a photo, a text of `tiny_tokenizer` and a number: what photo and text say, times it."""

    def __init__(self) -> None:
        super().__init__()
        self.colours, self.mentions = Colours(), Mentions()

    def forward(
        self,
        photo: torch.Tensor,
        weight: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        mentions = self.mentions(input_ids, attention_mask).to(photo.dtype)
        return (self.colours(photo) + mentions) * weight


class Pair(nn.Module):
    """Of two photos: the channel means of both, then how far these are apart, (N, 7)."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        means = [x.mean(dim=(2, 3)) for x in (left, right)]
        apart = (means[0] - means[1]).abs().sum(dim=1, keepdim=True)
        return torch.cat([*means, apart], dim=1)


class Titles(nn.Module):
    """Of two texts: what both mention."""

    def __init__(self) -> None:
        super().__init__()
        self.mentions = Mentions()

    def forward(
        self, title_input_ids: torch.Tensor, title_attention_mask: torch.Tensor,
        body_input_ids: torch.Tensor, body_attention_mask: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        title = self.mentions(title_input_ids, title_attention_mask)
        return title + 2 * self.mentions(body_input_ids, body_attention_mask)


class Brightest:
    """Post-processing: the name of the leading channel, and how far it leads."""

    schema = pa.schema([("channel", pa.string()), ("lead", pa.float64())])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, object]:
        means = outputs["means"]
        ordered = np.sort(means, axis=1)
        names = np.array(["red", "green", "blue"])
        return {"channel": names[means.argmax(axis=1)], "lead": ordered[:, -1] - ordered[:, -2]}


channels = Channels
redness = Redness
several = Several
pair = Pair
titles = Titles
sums = Sums
carried_sums = ScaledSums


def sums_of_two() -> nn.Module:
    """For vectors of two features, and no others."""
    return nn.Linear(2, 2)


mentions = Mentions
brightest = Brightest
spots = Spots
colours = Colours
slow_colours = Slow
coarse = Coarse
fussy = Fussy
hungry = Hungry
deadly = Deadly
unloadable = Unloadable
counting = Counting


def not_a_module() -> str:
    return "a string"


class Untrained(Colours):
    """Has random parameters, from torch's own generator, Python's and numpy's."""

    def __init__(self) -> None:
        super().__init__()
        self.head.reset_parameters()
        self.head.bias.data += random.random() + float(np.random.rand())


untrained = Untrained


def unseeded() -> nn.Module:
    """Other parameters each time, whatever the seed."""
    module = Colours()
    module.head.bias.data += float(np.random.default_rng().random())
    return module


def wants_a_name(name: str) -> nn.Module:
    raise AssertionError("is never called")


def wide() -> nn.Module:
    """One output more than there are labels."""
    module = Colours()
    module.head = nn.Linear(3, len(LABELS) + 1)
    return module


class Scaled(Colours):
    """Logits times a number, in an order and with a shift that mappings and lists say."""

    def __init__(self, scale: float, order: list[int], shift: dict[str, float]) -> None:
        super().__init__()
        self.scale, self.order, self.shift = scale, order, shift.get("by", 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, self.order] * self.scale + self.shift


def scaled(
    scale: float, *, order: list[int], shift: dict[str, float] | None = None, loud: bool = False
) -> nn.Module:
    return Scaled(scale, order, shift or {})


class Brighter(Brightest):
    """Post-processing with an argument: how far the leading channel leads, times a number."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, object]:
        results = super().__call__(outputs)
        return {**results, "lead": np.asarray(results["lead"]) * self.factor}


class Broken(Brightest):
    """Post-processing that fails."""

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, object]:
        raise RuntimeError("boom in my code")


broken = Broken


def no_schema() -> object:
    return lambda outputs: outputs


def wants_outputs(outputs: object) -> object:
    raise AssertionError("is never called")


def raises() -> object:
    raise OSError("no licence")


class MeanOfWords(nn.Module):
    """Embeds tokens and takes the mean of those that the mask keeps: (B, L) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.words = nn.Embedding(200, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[..., None].to(self.words.weight.dtype)
        return (self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


mean_of_words = MeanOfWords
