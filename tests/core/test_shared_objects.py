"""What a shared object needs is read from its header, and looked for as the loader does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.shared_objects import absent_libraries, needed_by

COMPILED = [
    path
    for path in sorted(Path(np.__file__).parent.rglob("*.so"))
    if b"\0libc.so.6\0" in path.read_bytes()
][:5]


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is the format of Linux")
@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.name)
def test_all_that_an_imported_module_needs_is_there(path: Path):
    needed, _ = needed_by(path)
    assert "libc.so.6" in needed
    assert absent_libraries(path) == []


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.name)
def test_the_header_is_read_as_binutils_read_it(path: Path):
    told = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    named = re.findall(r"\((NEEDED|RUNPATH|RPATH)\).*\[(.*)\]", told.stdout)
    needed, folders = needed_by(path)
    assert needed == [name for kind, name in named if kind == "NEEDED"]
    at = [name.replace("$ORIGIN", str(path.parent)) for kind, name in named if kind != "NEEDED"]
    assert folders == [Path(folder) for folder in ":".join(at).split(":") if folder]


def test_a_library_that_is_nowhere_is_named_unless_it_lies_beside(tmp_path: Path):
    path = tmp_path / COMPILED[0].name
    path.write_bytes(COMPILED[0].read_bytes().replace(b"libc.so.6\0", b"libq.so.6\0"))
    assert absent_libraries(path) == ["libq.so.6"]
    (tmp_path / "libq.so.6").touch()
    assert absent_libraries(path) == []


def test_another_format_needs_nothing(tmp_path: Path):
    (tmp_path / "module.so").write_bytes(b"\xcf\xfa\xed\xfe of a Mac")
    assert needed_by(tmp_path / "module.so") == ([], [])
