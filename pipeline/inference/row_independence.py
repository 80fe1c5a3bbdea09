"""Check that a prediction is a function of its row: not of chance, padding or other rows."""

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
from pipeline.preprocessing.model_input import Arrays as Inputs
from pipeline.preprocessing.model_input import Input, Rows, num_rows, take_rows
from pipeline.process.liveness import still_alive

ONE_LENGTH = (
    "padding changes what the model gives for a text, so its batches are of texts of one length"
)
ONE_ROW = (
    "the model takes no two texts at once, so each is a batch; a model whose config.json lacks a "
    "pad_token_id takes more with the one of its tokenizer"
)
_PADDING = AgreementLimits(2e-5, 1 - 1e-7, 1e-4, allows_ties=True)
"""Tighter than what is refused: a text that is easy to judge hides what padding does to others."""
_NARROW = AgreementLimits(0.05, 0.999, 0.05, allows_ties=True)
"""Of precisions other than fp32, which round in other ways in batches of other sizes."""


def leave_out_padding(model: DeviceModel) -> str | None:
    """Have batches from now on that the model takes, and whose padding changes nothing.

    Rows that are made here decide it, so that all actors decide alike.

    Returns:
        What a run says of batches without padding; None if they have it.
    """
    padded = model.config.spec.input
    trial = padded.padding_trial()
    if trial is None:
        return None
    rows, unpadded, single = trial
    expected, outputs = _tried(model, unpadded, rows), _tried(model, padded, rows)
    if expected is None and outputs is None and _tried(model, single, rows) is not None:
        return ONE_ROW
    # What is not finite without padding says nothing of it; what fails as well, its rows will tell.
    if expected is None or not are_finite(expected, np.arange(num_rows(rows))).all():
        model.take_input(padded)
        return None
    limits = _limits(model, _PADDING)
    if outputs is not None and model.task.compare(expected, outputs, limits).agrees.all():
        return None
    model.take_input(unpadded)
    return ONE_LENGTH


def _tried(model: DeviceModel, seen: Input, rows: Inputs) -> Arrays | None:
    """Predict rows in the batches of an input, which stays the model's; None if it fails."""
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
    """Predict the first and the last row of a slice again, without the others, and compare.

    Args:
        model: Has predicted the slice.
        inputs: What it saw, each (N, ...).
        results: What the task kept, each (N, ...).
        ok: The rows that were predicted, ascending, at least one.
        row_ids: (N,).

    Returns:
        Whether they were compared: not if memory is lacking, which slices in flight may hold.

    Raises:
        JobError: A row has another prediction then.
        InfraError: The GPU has failed.
    """
    ends, limits = np.unique(ok[[0, -1]]), _limits(model, SAME)
    # Batches of one size are dear: there both are in one.
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
                f"{begin}came out otherwise each time: the model is not deterministic; it must "
                "draw no random numbers, as dropout and random masks do"
            )
        padding = " or on padding" if model.config.spec.input.counts_tokens else ""
        raise JobError(
            f"{begin}came out otherwise without the other rows of the batch: the model depends on "
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
