"""Columns of the outputs that classes of transformers have: segments, depths, points, voices,
answers.

The job says `task: raw`, and, for instance, `postprocess: of_library:Segments`; the outputs have
the names of the class's own, which `pipeline plan` shows with their shapes.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

MOST_TOKENS = 15
"""Longest answer."""
POINT = pa.struct([("x", pa.float32()), ("y", pa.float32()), ("score", pa.float32())])


def png(values: np.ndarray) -> bytes:
    """Encode a map of 8 or 16 bits."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


class Segments:
    """Of `...ForSemanticSegmentation`: a PNG of class ids, in pixels of the model's output."""

    schema = pa.schema([("segments", pa.binary())])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a value for each row."""
        ids = outputs["logits"].argmax(axis=1).astype(np.uint8)  # (N, labels, H, W) -> (N, H, W)
        return {"segments": [png(row) for row in ids]}


class Depth:
    """Of `...ForDepthEstimation`: a PNG of 8 bits, white the largest, and both ends in its unit."""

    schema = pa.schema([("depth", pa.binary()), ("least", pa.float32()), ("most", pa.float32())])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a value for each row of each column."""
        depth = outputs["predicted_depth"]  # (N, H, W)
        least, most = depth.min(axis=(1, 2)), depth.max(axis=(1, 2))
        levels = (depth - least[:, None, None]) / np.maximum(most - least, 1e-9)[:, None, None]
        maps = [png(row) for row in np.rint(levels * 255).astype(np.uint8)]
        return {"depth": maps, "least": least, "most": most}


class Points:
    """Of `...ForPoseEstimation`: the peak of each heat map, as shares of the model's image."""

    schema = pa.schema([("points", pa.list_(POINT))])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a list of points for each row."""
        maps = outputs["heatmaps"]  # (N, points, H, W)
        (height, width), flat = maps.shape[2:], maps.reshape(*maps.shape[:2], -1)
        ys, xs = np.divmod(flat.argmax(axis=2), width)
        columns = (xs / (width - 1), ys / (height - 1), flat.max(axis=2))
        return {"points": [[*map(dict, named(row))] for row in np.stack(columns, axis=-1)]}


def named(points: np.ndarray) -> list[zip]:
    """Name the numbers of points (P, 3)."""
    return [zip(("x", "y", "score"), point, strict=True) for point in points.tolist()]


class Voices:
    """Of `...ForAudioFrameClassification`: of each frame the labels that sound in it."""

    schema = pa.schema([("voices", pa.list_(pa.list_(pa.int32())))])

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list]:
        """Return a list of frames for each row, each a list of label ids."""
        clips = zip(outputs["logits"], outputs["logits_frames"], strict=True)  # (N, L, labels), (N)
        return {"voices": [[np.flatnonzero(frame > 0) for frame in frames[:count]]
                           for frames, count in clips]}  # fmt: skip


class Answer:
    """Of `...ForQuestionAnswering`: the likeliest words of the second text, its pair's context."""

    schema = pa.schema([("answer", pa.string()), ("start", pa.int32()), ("end", pa.int32()),
                        ("score", pa.float32())])  # fmt: skip
    reads = ("text_pair", "offsets", "word_ids")

    def __call__(self, outputs: dict[str, np.ndarray], rows: pa.Table) -> dict[str, list]:
        """Return a value for each row of each column; null for a context without a word."""
        columns = (outputs["start_logits"], outputs["end_logits"], *rows.to_pydict().values())
        answers = [best_span(*row) for row in zip(*columns, strict=True)]
        return {name: [row and row[at] for row in answers]
                for at, name in enumerate(self.schema.names)}  # fmt: skip


def best_span(
    starts: np.ndarray, ends: np.ndarray, text: str, places: list[int], words: list[int]
) -> tuple[str, int, int, float] | None:
    """Return the answer, its place in characters and its score, as the library's pipeline did."""
    word, place = np.array(words), np.reshape(places, (-1, 2))
    counts = (word >= 0) | (np.arange(len(word)) == 0)  # the first token stands for no answer
    logits = np.where(counts, [starts[: len(word)], ends[: len(word)]], -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    begins, stops = weights / weights.sum(axis=1, keepdims=True) * (word >= 0)
    scores = np.tril(np.triu(np.outer(begins, stops)), MOST_TOKENS - 1)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    start, end = place[word == word[first]][0, 0], place[word == word[last]][-1, 1]
    return (text[start:end], start, end, scores.max()) if scores.max() else None
