"""Probes: rows that both a model's own library and the package prepare, to compare the results.

The rows are those that preprocessing is likely to treat differently: blank ends, line ends, special
tokens of the directory's own vocabulary, images in several modes and sizes, clips of several
lengths. They are the same in each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message

_LONG_WORDS = 40
_SHOWN_CHARS = 100
SAMPLE_RATE_HZ = 16_000
"""Sample rate of `clips`."""


def texts(special: Sequence[str], max_tokens: int) -> tuple[str, ...]:
    """Return eight texts.

    Args:
        special: Texts of special tokens of the tokenizer.
        max_tokens: Limit of the model; the last text is longer, up to 4,096 words.
    """
    marked = " ".join(["one", *special[:4], "two"])
    long = "The quick brown fox jumps over the lazy dog number 7. " * _LONG_WORDS
    words = min(max_tokens, 4_096) * len("dog ") * 2
    return (
        "A good film.",
        "  Leading, trailing \u00a0 and  double blanks  \n",
        "first line\r\nsecond line\n\n",
        marked,
        "Caf\u00e9 na\u00efve \U0001f600\U0001f44d\U0001f3fd \u4e2d\u6587 CAPITALS don't 3.14",
        "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627",
        "",
        (long * (words // len(long) + 1))[: max(words, len(long))],
    )


def pairs(special: Sequence[str], max_tokens: int) -> tuple[tuple[str, str], ...]:
    """Return four pairs of texts; see `texts`."""
    first = texts(special, max_tokens)
    return (
        (first[0], first[4]),
        (first[1], first[2]),
        (first[3], first[5]),
        (first[0], first[7]),
    )


@cache
def images(model_px: int = 224) -> tuple[bytes, ...]:
    """Return four PNG images: grey, with alpha, larger than the model takes, and small.

    Waves show where a pixel lies, and noise how it is resampled.

    Args:
        model_px: A side of the images that the model takes.
    """
    from PIL import Image

    large = max(641, 2 * model_px + 1)
    sizes = (("L", 61, 97), ("RGBA", 300, 200), ("RGB", large, large * 2 // 3), ("RGB", 31, 17))
    made, noise = [], np.random.default_rng(0)
    for mode, width, height in sizes:
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        planes = [x, y, (x + y) / 2, 0.5 + x / 2][: len(mode)]
        waves = [
            0.5 + 0.5 * np.sin((5 + 3 * n) * (plane + n * y)) for n, plane in enumerate(planes)
        ]
        shape = (height, width, len(mode))
        mixed = 0.7 * np.stack(waves, axis=-1) + 0.3 * noise.random(shape)
        pixels = (mixed * 255).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(
            file, "PNG", compress_level=1
        )
        made.append(file.getvalue())
    return tuple(made)


@cache
def clips() -> tuple[npt.NDArray[np.float32], ...]:
    """Return three clips of sound, float32 (T,), of 0.4 s, 1.3 s and 3 s."""
    made = []
    for number, length_s in enumerate((0.4, 1.3, 3.0)):
        t = np.arange(int(length_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        made.append(
            (0.3 * np.sin(2 * np.pi * (220 + 110 * number) * t * (1 + t / 10))).astype("f4")
        )
    return tuple(made)


def frames(tokens: Sequence[str]) -> tuple[list[int], ...]:
    """Return outputs of the frames of three clips: each once, each twice, and many at random."""
    ids, drawn = np.arange(len(tokens)), np.random.default_rng(0)
    mixed = drawn.permutation(np.tile(ids, 3)).repeat(drawn.integers(1, 4, 3 * len(ids)))
    return ids.tolist(), ids.repeat(2).tolist(), mixed.tolist()


def wav_files() -> tuple[bytes, ...]:
    """Return `clips` as files."""
    import soundfile

    files = []
    for clip in clips():
        file = BytesIO()
        soundfile.write(file, clip, SAMPLE_RATE_HZ, "FLOAT", format="WAV")
        files.append(file.getvalue())
    return tuple(files)


def require_same(
    probe: str, tensor: str, library: str, expected: Any, actual: Any, tolerance: float = 0.0
) -> None:
    """Refuse a directory whose library makes other numbers from a probe than the package does.

    Args:
        probe: The row, for the message.
        expected: The numbers of the library, of any shape.
        actual: Ours.
        tolerance: The largest difference of a number.

    Raises:
        JobError: They differ; has both values.
    """
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if a.shape == b.shape and (np.abs(a - b) <= tolerance).all():  # NaN is not the same
        return
    if a.shape != b.shape:
        what = f"has shape {a.shape} in {library}, and {b.shape} here"
        if a.ndim == b.ndim == 1:
            what += f" ({_shown(expected)} and {_shown(actual)})"
    else:
        place = np.unravel_index(int(np.abs(a - b).argmax()), a.shape)
        at = ", ".join(map(str, place))
        what = f"[{at}] is {a[place]:g} in {library}, and {b[place]:g} here"
    raise JobError(f"model.path: probe {clean_message(probe, 60)!r}: {tensor} {what}")


def _shown(values: Any) -> str:
    return clean_message(str(np.asarray(values).tolist()), _SHOWN_CHARS)
