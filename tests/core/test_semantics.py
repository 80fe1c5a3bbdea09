"""Versions of installed libraries come from metadata alone, and changes are listed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from pipeline.core.semantics import changed_versions, environment_versions, package_versions

THEN = {"pillow": "12.2.0", "torch": "2.13.0", "numpy": "2.4.6"}


def test_versions_are_those_of_the_distributions_and_none_is_imported():
    assert package_versions()["ray"] == version("ray")
    assert environment_versions()["pillow"] == version("pillow")
    program = (
        "import sys; from pipeline.core.semantics import environment_versions as e; e();"
        "print([n for n in ('torch', 'transformers', 'PIL') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (THEN, ()),
        ({**THEN, "pillow": "13.0.0"}, ("pillow 12.2.0 -> 13.0.0",)),
        ({"pillow": "12.2.0", "numpy": "2.4.6"}, ("torch 2.13.0 -> none",)),
        ({**THEN, "timm": "1.0.31"}, ()),  # decided nothing then
        ({**THEN, "ray": "2.61.0"}, ()),
    ],
)
def test_a_change_is_of_what_decides_predictions_and_was_there(
    now: dict[str, str], changed: tuple[str, ...]
):
    assert changed_versions({**THEN, "ray": "2.60.0"}, now) == changed
    assert changed_versions({}, now) == ()
