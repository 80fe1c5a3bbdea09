"""Each error has an exit code, and passes process borders and wrappers unchanged."""

from __future__ import annotations

import pickle

import pytest

from pipeline.core import errors
from pipeline.core.errors import (
    GateRefused,
    InfraError,
    JobError,
    JobErrors,
    PipelineError,
    find_cause,
)

EXIT_CODES = {
    "PipelineError": 1,
    "JobError": 2,
    "GateRefused": 3,
    "PartitionBusy": 4,
    "PublishConflict": 5,
    "Stopped": 6,
    "InfraError": 7,
    "InputMissing": 8,
}


class WrapperLikeRays(JobError):
    """Poses as an instance of its cause, as Ray's wrapper does."""

    def __init__(self, cause: BaseException | None) -> None:
        super().__init__("text of the wrapper")
        self.cause = cause


def caught(outer: Exception, inner: BaseException) -> Exception:
    """`outer`, raised from `inner`."""
    try:
        raise outer from inner
    except Exception as error:  # noqa: BLE001  # that is what is wanted
        return error


def test_every_error_has_the_exit_code_of_the_contract():
    kinds = {PipelineError, *PipelineError.__subclasses__()} - {WrapperLikeRays}
    exit_codes = {
        error_type.__name__: error_type.exit_code
        for error_type in kinds
        if error_type.__module__ == errors.__name__
    }
    assert exit_codes == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_survives_pickling(name: str):
    error = getattr(errors, name)("what happened, to what")
    error.args = (f"{error.args[0]}\nTo change retry attempts, ...",)  # as Ray Data does
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == "what happened, to what"
    assert copy.exit_code == error.exit_code


def test_several_errors_of_a_job_keep_their_lines_through_pickling():
    error = pickle.loads(pickle.dumps(JobErrors("job.yaml: 2 errors\nline 1: a\nline 2: b")))
    assert error.lines == ["job.yaml: 2 errors", "line 1: a", "line 2: b"]
    assert error.exit_code == 2


def test_our_own_error_is_found_through_causes_and_wrappers():
    ours = InfraError("the store is down")
    assert find_cause(ours) is ours
    assert find_cause(caught(ValueError("x"), ours)) is ours
    assert find_cause(caught(OSError("y"), caught(ValueError("x"), ours))) is ours
    assert find_cause(WrapperLikeRays(ours)) is ours
    assert find_cause(caught(RuntimeError("z"), WrapperLikeRays(caught(KeyError(), ours)))) is ours


def test_the_outermost_of_our_own_errors_wins():
    outer = caught(GateRefused("refused"), InfraError("down"))
    assert find_cause(outer) is outer


def test_foreign_errors_and_circles_have_no_cause_of_ours():
    assert find_cause(ValueError("x")) is None
    assert find_cause(caught(ValueError("x"), KeyError("y"))) is None
    assert find_cause(WrapperLikeRays(ValueError("x"))) is None
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_cause(first) is None


def test_what_only_happened_meanwhile_is_no_cause():
    error = ValueError("a bug in the handler")
    error.__context__ = InfraError("down")
    assert find_cause(error) is None
