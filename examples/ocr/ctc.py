"""What a recogniser of PaddleOCR says, as texts: what `model.postprocess` of the job names."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pyarrow as pa


class Reader:
    """Turns probabilities (N, T, C) of C characters at T places into a text for each row."""

    schema = pa.schema([("text", pa.string()), ("score", pa.float32())])

    def __init__(self, model: str) -> None:
        """Take the model's file, which has the characters in its metadata."""
        self._characters = characters(model)

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Take the likeliest character of each place, once where it repeats, without blanks.

        What is read of the bars beside a line are spaces at its ends, which go.

        The score is the mean probability of the characters; of an empty text it is 0.
        """
        likeliest = outputs["characters"].argmax(axis=2)
        highest = outputs["characters"].max(axis=2)
        before = np.pad(likeliest, ((0, 0), (1, 0)))[:, :-1]
        is_read = (likeliest != 0) & (likeliest != before)
        texts = [
            "".join(self._characters[index] for index in row[kept]).strip()
            for row, kept in zip(likeliest, is_read, strict=True)
        ]
        scores = [
            float(row[kept].mean()) if kept.any() else 0.0
            for row, kept in zip(highest, is_read, strict=True)
        ]
        return {"text": texts, "score": scores}


@cache
def characters(model: str) -> list[str]:
    """Return what each index stands for: a blank, the characters of the file, a space."""
    metadata = {each.key: each.value for each in onnx.load(model).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]
