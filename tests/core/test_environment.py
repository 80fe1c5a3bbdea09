"""Environment variables that change a run are named in one module."""

from __future__ import annotations

import re

from support.runs.package_source import FILES, PACKAGE

from pipeline.core import environment


def test_our_variables_are_named_in_one_module_alone():
    variables = {value for name, value in vars(environment).items() if name.isupper()}
    named = {
        name: path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for name in re.findall(r"""['"](PIPELINE_[A-Z_]+)['"]""", path.read_text())
    }
    assert named == dict.fromkeys(variables, "core/environment.py")
