"""Causes of failed rows are joined across differing messages, and their sums are exact."""

from __future__ import annotations

import pickle
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.staging import StagedSlice
from pipeline.core.errors import JobError
from pipeline.core.failures import (
    MAX_PER_SLICE,
    Cause,
    Causes,
    Failure,
    Reason,
    SystematicFailure,
    causes_of,
    common_cause,
    failure_columns,
    format_causes,
    key_of,
)
from pipeline.core.printable import num_of
from pipeline.report.row_accounts import RowAccounts

REASONS = [Reason.EMPTY, Reason.MODEL_ERROR, Reason.MISSING]


def rows_of(failures: list[Failure | None], first: int = 0) -> pa.Table:
    ids = [f"in/{first + row:04d}.jpg" for row in range(len(failures))]
    names = {"row_id": ids, "uri": [f"/data/{row_id}" for row_id in ids]}
    return pa.table({**names, **failure_columns(failures)})


def staged(failures: list[Failure | None], first: int = 0) -> StagedSlice:
    """As a part's footer says it, through JSON."""
    reasons = Counter(failure.reason.value for failure in failures if failure)
    causes = [cause.__dict__ for cause in causes_of(rows_of(failures, first))]
    footer = StagedSlice("run", len(failures), reasons=dict(reasons), causes=causes)
    return StagedSlice.from_json(footer.to_json())


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("the image has 0 bytes", "the image has 17 bytes", True),
        ("mat1 (1x5) and mat2 (4x3)", "mat1 (32x5) and mat2 (4x3)", True),
        ("tensor at 0x7f01ab", "tensor at 0x9c", True),
        ("no key 'tree'", 'no key "house"', True),
        ("/data/a.jpg: no such file", "/data/a.jpg: HTTP 404", False),
        ("ValueError: too dark", "KeyError: too dark", False),
    ],
)
def test_messages_that_differ_in_what_is_a_rows_own_are_alike(
    one: str, other: str, are_alike: bool
):
    assert (key_of(one) == key_of(other)) == are_alike


def test_the_names_of_a_row_are_its_own():
    failures = [Failure(Reason.MISSING, "read", f"/data/in/{n:04d}.jpg: gone") for n in range(3)]
    (cause,) = causes_of(rows_of(list(failures)))
    assert (cause.num_rows, cause.row_id) == (3, "in/0000.jpg")
    assert cause.message == "/data/in/0000.jpg: gone"


failures_of_rows = st.lists(
    st.none()
    | st.builds(
        Failure,
        st.sampled_from(REASONS),
        st.sampled_from(["read", "predict"]),
        st.sampled_from("abcdefghijklmnopqrstuvwxyz"),
    ),
    max_size=80,
)


@given(slices=st.lists(failures_of_rows, max_size=6), seed=st.randoms())
def test_causes_of_all_slices_make_up_the_reasons_in_whatever_order_they_come(slices, seed):
    def top_causes(order):
        tally = RowAccounts()
        for number in order:
            tally.add("computed", staged(slices[number], first=100 * number))
        causes = tally.top_failures(1000)
        counts = Counter[str]()
        for cause in causes:
            counts[cause.reason] += cause.num_rows
        assert +counts == tally.reasons
        assert all(cause.num_rows > 0 for cause in causes)
        return causes

    order = list(range(len(slices)))
    causes = top_causes(order)
    seed.shuffle(order)
    assert top_causes(order) == causes
    true = Counter(
        (f.reason.value, f.stage, f.message) for rows in slices for f in rows if f is not None
    )
    for cause in causes:
        if cause.message is not None:
            exact = true[cause.reason, cause.stage, cause.message]
            assert cause.num_rows == exact or (cause.at_least and cause.num_rows < exact)


def test_a_slice_of_a_thousand_different_messages_stays_small():
    words = [
        f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]}{'uvwxyzabcd'[n // 100]}"
        for n in range(1000)
    ]
    causes = causes_of(rows_of([Failure(Reason.MISSING, "read", word) for word in words]))
    assert len(causes) <= MAX_PER_SLICE + len(Reason)
    assert sum(cause.num_rows for cause in causes) == 1000
    others = [cause for cause in causes if cause.message is None]
    assert [cause.num_rows for cause in others] == [1000 - MAX_PER_SLICE]
    assert all(cause.at_least for cause in causes if cause.message is not None)
    total = Causes(3)
    total.add(causes)
    total.add(causes)
    assert sum(cause.num_rows for cause in total.top(100)) == 2000
    assert len(total.top(100)) == 4


def test_a_footer_of_before_counts_by_its_reasons():
    tally = RowAccounts()
    tally.add("computed", StagedSlice("run", 5, reasons={"empty": 3}))
    tally.duplicates({"cat": 2})
    causes = tally.top_failures(5)
    assert [(c.reason, c.num_rows, c.message) for c in causes] == [
        ("empty", 3, None),
        ("duplicate_id", 2, "an earlier row has the same id"),
    ]


def test_causes_in_words_name_a_row_each():
    empty = Cause("empty", "decode", "the image has 0 bytes", 20, "0000.jpg")
    assert format_causes([empty], 20) == "20 empty, e.g. 0000.jpg: the image has 0 bytes"
    assert format_causes([empty], 23).endswith("; 3 others")
    assert format_causes([], 0) == ""
    vague = [Cause("missing", num_rows=7)]
    assert format_causes(vague, 7) == "7 missing"
    long = Cause("empty", "decode", "x" * 500, 1, "a\x1b[31m\nb" * 50, at_least=True)
    text = format_causes([long], 1)
    assert text.startswith("at least 1 empty, e.g. a\\x1b[31m b")
    assert text.isprintable()
    assert len(text) < 250


def test_one_cause_is_common_to_all_only_if_nothing_was_predicted():
    alike = Cause("model_error", "predict", "ValueError: no", 5, "a", "ValueError: no")
    decode = Cause("decode_error", "decode", "bad", 2, "b", "bad")
    crash = Cause("native_crash", "predict", "crashed", 1, "c", "crashed")
    assert common_cause([alike, decode], 0) == alike
    assert common_cause([alike], 1) is None
    assert common_cause([decode], 0) is None
    assert common_cause([alike, crash], 0) is None
    assert common_cause([Cause("model_error", "predict", "x", 1, "a", "x")], 0) is None
    assert common_cause([Cause("model_error", "predict", None, 9)], 0) is None
    assert common_cause([Cause("non_finite", "predict", "x", 9, "a", "x")], 0) is None
    transform = Cause("decode_error", "transform", "transform.factory a:b: OSError", 9, "a", "x")
    assert common_cause([transform, decode], 0) == transform
    assert common_cause([transform], 1) is None
    assert common_cause([transform, alike], 0) == alike


def test_the_error_of_rows_that_failed_alike_survives_pickling():
    failed = Cause(
        "model_error", "predict", "RuntimeError: boom", 64, "0.jpg", "RuntimeError: boom"
    )
    error = pickle.loads(pickle.dumps(SystematicFailure.of(failed, "net3.py line 27")))
    assert isinstance(error, JobError)
    assert error.exit_code == 2
    assert error.failed == failed
    assert str(error) == (
        'all 64 rows of the first batches failed alike: model_error "RuntimeError: boom" '
        "(net3.py line 27); nothing was published"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12345, "12,345 rows")]
)
def test_one_is_singular(count: int, text: str):
    assert num_of(count, "row") == text


def test_a_single_row_is_not_all_1_rows():
    failed = Cause("model_error", "predict", "boom", 1)
    assert str(SystematicFailure.of(failed)).startswith("the only row of the first batches failed")
