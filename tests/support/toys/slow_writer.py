"""A language model each step of which takes a part of a small limit, as a child works with it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from pipeline.core.figures.counters import Counters
from pipeline.execution.isolation.child_process import Step
from pipeline.inference.engines.generate_engine import GenerateEngine
from pipeline.models.directories.text.writing.decoding import Decoding
from pipeline.models.spec import PredictorConfig
from pipeline.process.liveness import hang_guard

STAGE = "predict"


@dataclass(frozen=True)
class SlowWriting:
    """Writes rows under the limit that an actor has, too."""

    config: PredictorConfig
    step_s: float
    limit_s: float

    def open(self) -> Mapping[str, Step]:
        engine = GenerateEngine(self.config)
        model = cast(Decoding, engine._model.module).model
        model.register_forward_pre_hook(lambda *_: time.sleep(self.step_s))

        def predict(rows: pa.Table, counters: Counters) -> pa.Table:
            with hang_guard(self.limit_s):
                return engine.predict(rows, counters)

        return {STAGE: predict}
