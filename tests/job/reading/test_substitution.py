"""Values of environment variables appear in no message, in any form."""

from __future__ import annotations

import datetime as dt

import pytest

from pipeline.job.reading.substitution import Secrets, Substitution

DAY = dt.date(2026, 11, 24)


@pytest.mark.parametrize("value", ["plain-token", 'it\'s "quoted"', "two\nlines", "back\\slash"])
def test_a_secret_is_hidden_however_it_is_shown(value: str):
    secrets = Secrets(values={"TOKEN": value})
    for shown in (value, repr(value), f"{{'key': {value!r}}}"):
        hidden = secrets.hide(f"bad value {shown}, expected a number")
        assert "${env:TOKEN}" in hidden
        assert value not in hidden
        assert repr(value)[1:-1] not in hidden


def test_the_longer_of_two_secrets_is_hidden_whole_and_short_values_are_shown():
    secrets = Secrets(values={"A": "token", "B": "token-and-more", "C": "abc"})
    assert secrets.hide("token-and-more, token, abc") == "${env:B}, ${env:A}, abc"
    assert Secrets(values={"D": "four"}).hide("four") == "${env:D}"


def test_what_was_substituted_is_remembered_with_its_place():
    filled = Substitution(DAY, {"TOKEN": "s3cr3t"})
    document = {"a": ["x", {"b": "${env:TOKEN}/${date}"}], "c": "${env:GONE}"}
    assert filled.apply(document)["a"] == ["x", {"b": "s3cr3t/2026-11-24"}]
    assert filled.secrets.paths == {("a", 1, "b")}
    assert filled.secrets.values == {"TOKEN": "s3cr3t"}
    assert filled.secrets.unknown == {("c",)}
    (problem,) = filled.problems
    assert problem.text == "c: ${env:GONE}: environment variable GONE is not set"


def test_an_hour_is_substituted_and_required():
    text = "hour=${date}T${hour}"
    five = dt.datetime(2026, 11, 24, 5, tzinfo=dt.UTC)
    assert Substitution(five, {}).apply(text) == "hour=2026-11-24T05"
    filled = Substitution(DAY, {})
    filled.apply({"sink": {"partition": text}})
    (problem,) = filled.problems
    assert (
        problem.text == "sink.partition: ${hour} needs a date with an hour, such as 2026-11-24T05"
    )


def test_a_key_with_a_lone_surrogate_is_reported():
    filled = Substitution(DAY, {})
    assert filled.apply({"a": {"x\ud800": "${date}", 3: 1}}) == {"a": {"x?": "2026-11-24", 3: 1}}
    assert [(problem.path, problem.text) for problem in filled.problems] == [
        (("a",), "a: a key is not UTF-8 text")
    ]


def test_an_unknown_variable_is_shown_unless_it_may_be_a_credential():
    filled = Substitution(DAY, {})
    filled.apply({"source": {"uri": "${day}", "storage_options": {"key": "${hunter2}"}}})
    only = "only ${date}, ${hour} and ${env:NAME} are substituted"
    assert [problem.text for problem in filled.problems] == [
        f"source.uri: ${{day}}: {only}",
        f"source.storage_options.key: {only}",
    ]
