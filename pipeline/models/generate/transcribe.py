"""Task `transcribe`: the text of a clip, by the best token of each frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.schema import MEAN_LOGPROB, OUTPUT_TEXT
from pipeline.models.agreement import Agreement, AgreementLimits
from pipeline.models.generate.task import Writes, shown
from pipeline.models.outputs import OutputError, require
from pipeline.models.tasks.base import Arrays, Mask

if TYPE_CHECKING:
    import torch

FRAMES = "frames"
"""Result: the best output of each frame and 1, int32 (N, L); zeros behind the last frame."""
_TIES = 0.02
"""Share of the frames of a clip in which two tokens may be about equally likely."""


@dataclass(frozen=True)
class Transcribe(Writes):
    """A text, and the mean log probability of the best token of each frame.

    Repeated tokens and blanks are left out as the library does; there is no language model beside.
    """

    instead: ClassVar[Mapping[str, str]] = {"generate": "in which a decoder writes token by token"}

    def fields(self) -> list[pa.Field]:
        return [pa.field(OUTPUT_TEXT, pa.string()), pa.field(MEAN_LOGPROB, pa.float32())]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        length = outputs.shape[1] if isinstance(outputs, torch.Tensor) and outputs.ndim == 3 else 0
        if self.spec.transcription is None:
            raise OutputError("no directory says which token an output stands for; give model.path")
        shape = (num_rows, length, len(self.spec.transcription.tokens))
        logits = require(outputs, shape, "its tokenizer {}", "logits, one per frame and token")
        best = logits.float().log_softmax(dim=2).amax(dim=2)
        frames = logits.argmax(dim=2).to(torch.int32) + 1
        return {FRAMES: frames, MEAN_LOGPROB: best.mean(dim=1)}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        return {
            OUTPUT_TEXT: pa.array(self._texts(arrays), pa.string(), mask=~ok),
            MEAN_LOGPROB: pa.array(arrays[MEAN_LOGPROB], pa.float32(), mask=~ok),
        }

    def _texts(self, arrays: Arrays) -> Any:
        made = self.spec.transcription
        assert made is not None, "rows were reduced"
        texts = [made.text((row[row > 0] - 1).tolist()) for row in arrays[FRAMES]]
        if made.cleans:
            from pipeline.models.generate.build import clean

            texts = [clean(text) for text in texts]
        return np.array(texts, object)

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare texts as `Writes` does; few frames may differ, as a tie is that of a frame."""
        texts = [arrays | {OUTPUT_TEXT: self._texts(arrays)} for arrays in (reference, candidate)]
        frames = reference[FRAMES], candidate[FRAMES]
        width = max(side.shape[1] for side in frames)
        a, b = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in frames)
        is_like = (a != b).sum(axis=1) <= np.maximum(1, _TIES * (a > 0).sum(axis=1))
        agreement = super().compare(texts[0], texts[1], limits)
        return replace(agreement, agrees=agreement.agrees & is_like)

    def measured_columns(self) -> tuple[str, ...]:
        return (MEAN_LOGPROB,)

    def describe(self, row: Mapping[str, Any]) -> str:
        return f'text "{shown(row[OUTPUT_TEXT])}"'
