"""An artefact is kept whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.cache.cache_folder import cache_folder
from pipeline.core.cache.node_cache import kept


def test_what_could_not_be_written_whole_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[str] = []

    def half(folder: Path) -> None:
        calls.append("half")
        (folder / "config").write_text("{}")
        raise OSError("no space left")

    def whole(folder: Path) -> None:
        calls.append("whole")
        assert not [*folder.iterdir()]
        for name in ("config", "weights"):
            (folder / name).write_text(name)

    with pytest.raises(OSError, match="no space left"):
        kept("a-model", half)
    before = [path for path in cache_folder().iterdir() if path.is_dir()]
    assert [path.name for path in before if path.name[:1] == "." or path.name == "a-model"] == []
    for _ in range(2):
        found = kept("a-model", whole)
        assert sorted(path.name for path in found.iterdir()) == ["config", "weights"]
    assert calls == ["half", "whole"]
