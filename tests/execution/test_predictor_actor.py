"""An actor ends the run if no row of the first slices gets past the user's own transform."""

from __future__ import annotations

import pytest
from support.runs.predicting import images, predictor, rows_of

from pipeline.core.causes import SystematicFailure
from pipeline.core.failures import Failure, Reason
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.predictor_actor import ActorConfig, _Model
from pipeline.inference.slices.first_rows import SystematicFailureDetector
from pipeline.process.memory import MemoryShare

OWN = Failure(Reason.DECODE_ERROR, "transform", "transform.factory own:make: KeyError: 'a'")


def model_of(first: SystematicFailureDetector) -> _Model:
    config = predictor("models:colours")._config
    return _Model(
        ActorConfig(config, 60.0, MemoryShare(2**32, 1), IMAGE_FIELDS, first_rows=first), {}
    )


def test_a_slice_of_which_no_row_gets_to_the_model_is_watched_too():
    model = model_of(SystematicFailureDetector(8))
    with pytest.raises(
        SystematicFailure, match="all 8 rows of the first batches failed alike: decode_e"
    ):
        model.predict(rows_of(images(8), [OWN] * 8), {})


def test_some_rows_that_fail_are_rows_that_fail():
    model = model_of(SystematicFailureDetector(8))
    found = model.predict(rows_of(images(9), [None, *[OWN] * 8]), {})
    assert found.column("error").to_pylist() == [None, *[Reason.DECODE_ERROR] * 8]
