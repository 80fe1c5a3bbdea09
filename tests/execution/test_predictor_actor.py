"""An actor watches the first rows, and makes its reference check once."""

from __future__ import annotations

import pytest
from support.faults.fake_device import FakeGpu, installed
from support.runs.predicting import config_of, images, rows_of

from pipeline.core.failures import Failure, Reason, SystematicFailure
from pipeline.core.figures import Counters
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.predictor_actor import ActorConfig, _Model
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.models.agreement import AgreementLimits
from pipeline.process.memory import MemoryShare

OF_TRANSFORM = Failure(
    Reason.DECODE_ERROR, "transform", "transform.factory own:make: KeyError: 'a'"
)


def model_of(first: SystematicFailureDetector) -> _Model:
    config = config_of("models:colours")
    return _Model(
        ActorConfig(config, 60.0, MemoryShare(2**32, 1), IMAGE_FIELDS, first_rows=first), {}
    )


def test_a_slice_of_which_no_row_gets_to_the_model_is_watched_too():
    model = model_of(SystematicFailureDetector(8))
    with pytest.raises(
        SystematicFailure, match="all 8 rows of the first batches failed alike: decode_e"
    ):
        model.predict(rows_of(images(8), [OF_TRANSFORM] * 8), {})


def test_some_rows_that_fail_are_rows_that_fail():
    model = model_of(SystematicFailureDetector(8))
    predicted = model.predict(rows_of(images(9), [None, *[OF_TRANSFORM] * 8]), {})
    assert predicted.column("error").to_pylist() == [None, *[Reason.DECODE_ERROR] * 8]


@pytest.mark.parametrize("is_first", [True, False], ids=["before any slice", "after a slice"])
def test_a_model_that_made_room_is_compared_once_and_not_never(is_first: bool):
    limits, rows = AgreementLimits(0.1, 0.99, 0.1), rows_of(images(20))
    with installed(FakeGpu()):
        config = config_of("models:colours", num_gpus=1, precision="bf16", limits=limits)
        model = _Model(ActorConfig(config, 60.0, MemoryShare(2**32, 1), IMAGE_FIELDS), {})
        model._predictor = model._loaded(config)
        before: Counters = {}
        after: Counters = {}
        if not is_first:
            model.count_unchecked(model.predict(rows, before), before)
        model.make_room()  # another slice is done in a child
        unchecked: Counters = {}
        model.count_unchecked(rows, unchecked)
        model.count_unchecked(model.predict(rows, after), after)
    compared = [figures.get("reference_check", {}).get("num_rows") for figures in (before, after)]
    assert compared == ([None, 16] if is_first else [16, None])
    assert ("reference_check" in unchecked) == is_first
