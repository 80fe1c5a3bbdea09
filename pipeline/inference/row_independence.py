"""Check that a prediction depends on its row alone, not on chance, padding or other rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.inference.devices.device_errors import is_out_of_memory
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.reference_model import reduced
from pipeline.inference.slice_run import are_finite
from pipeline.models.agreement import SAME, AgreementLimits
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import Input, Inputs, Rows, num_rows, take_rows
from pipeline.process.liveness import still_alive

ONE_LENGTH = "padding changes the model's output for a text, so each batch has texts of one length"
ONE_ROW = (
    "the model takes one text at a time, so each text is a batch; if config.json lacks a "
    "pad_token_id, setting it to the tokenizer's allows larger batches"
)
_PADDING = AgreementLimits(2e-5, 1 - 1e-7, 1e-4, allows_ties=True)
"""Tighter than the limits of refusal: a text that is easy to judge hides the effect of padding."""
_NARROW = AgreementLimits(0.05, 0.999, 0.05, allows_ties=True)
"""For precisions other than fp32, whose rounding depends on the size of the batch."""


def leave_out_padding(model: DeviceModel) -> str | None:
    """Stop padding batches if the model fails over padding, or if it changes predictions.

    Generated rows decide it, so that all actors decide alike.

    Returns:
        Advice for the report if batches are not padded any more, otherwise None.
    """
    padded = model.config.spec.input
    trial = padded.padding_trial()
    if trial is None:
        return None
    rows, unpadded, single = trial
    expected, outputs = _tried(model, unpadded, rows), _tried(model, padded, rows)
    if expected is None and outputs is None and _tried(model, single, rows) is not None:
        return ONE_ROW
    # If the model fails without padding, too, or its outputs are not finite, the rows will tell.
    if expected is None or not are_finite(expected, np.arange(num_rows(rows))).all():
        model.take_input(padded)
        return None
    limits = _limits(model, _PADDING)
    if outputs is not None and model.task.compare(expected, outputs, limits).agrees.all():
        return None
    model.take_input(unpadded)
    return ONE_LENGTH


def _tried(model: DeviceModel, seen: Input, rows: Inputs) -> Arrays | None:
    """Predict rows in the batches of an input, which the model keeps; None if it fails."""
    model.take_input(seen)
    try:
        return _given(model, rows)
    except PipelineError:
        raise
    except Exception as error:  # noqa: BLE001  # of the model
        if model.gpu is not None:
            model.gpu.lacks_memory(error)  # ends the process if its context is lost
        return None


def require_independent_rows(
    model: DeviceModel, inputs: Inputs, results: Arrays, ok: Rows, row_ids: Sequence[object]
) -> bool:
    """Predict the first and the last row of a slice again, without the other rows, and compare.

    Args:
        model: The model that has predicted the slice.
        inputs: Its inputs, each (N, ...).
        results: The results, each (N, ...).
        ok: The rows that were predicted, ascending, at least one.
        row_ids: (N,).

    Returns:
        Whether they were compared; False if memory was lacking, as slices in flight may hold it.

    Raises:
        JobError: A row gets another prediction.
        InfraError: The GPU has failed.
    """
    ends, limits = np.unique(ok[[0, -1]]), _limits(model, SAME)
    # A batch of fixed size is costly, so there both rows share one.
    for rows in [ends] if model.runner.is_static else [ends[:1], ends[1:]]:
        if not len(rows):
            continue
        some, given = take_rows(inputs, rows), take_rows(results, rows)
        names = " and ".join(clean_message(str(row_ids[row])) for row in rows)
        begin = f"model {model.config.spec.name}: predicted again, {names} "
        still_alive()
        try:
            outputs = reduced(model, some)
            if model.task.compare(outputs, given, limits).agrees.all():
                continue
            again = reduced(model, some)
        except PipelineError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                return False
            cause = clean_message(f"{type(error).__name__}: {error}")
            raise JobError(f"{begin}failed without the other rows of the batch: {cause}") from error
        is_known = are_finite(outputs, np.arange(len(rows))).all()
        if is_known and not model.task.compare(outputs, again, limits).agrees.all():
            raise JobError(
                f"{begin}differed each time: the model is not deterministic; it must not draw "
                "random numbers, as dropout and random masks do"
            )
        padding = " or on padding" if model.config.spec.input.counts_tokens else ""
        raise JobError(
            f"{begin}differed without the other rows of the batch: the model depends on "
            f"them{padding}; it must treat each row by itself"
        )
    return True


def _given(model: DeviceModel, rows: Inputs) -> Arrays:
    results: Arrays = {}
    for _ in model.predict_batches(rows, results):
        pass
    return results


def _limits(model: DeviceModel, exact: AgreementLimits) -> AgreementLimits:
    return exact if model.config.spec.precision == "fp32" else _NARROW
