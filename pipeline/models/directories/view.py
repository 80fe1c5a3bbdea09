"""A view of a copy of a model directory that is safe to give to the directory's own library.

Weights and tokenizers are links; JSON files that libraries read settings from are written anew,
without the keys that name code, other places or kernels, at every depth.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.models.directories.json_files import read_json

_AS_THEY_ARE = ("tokenizer.json", "model.safetensors.index.json")
"""JSON files that are data of their own: a vocabulary may have any word."""
_DROPPED = frozenset(
    (
        *("_attn_implementation", "_attn_implementation_autoset", "_experts_implementation"),
        *("_name_or_path", "attn_implementation", "auto_map", "base_model_name_or_path"),
        *("custom_generate", "custom_pipelines", "experts_implementation", "trust_remote_code"),
    )
)
"""Keys that say where a model came from, which code or which kernels run it, not what it is."""


def make_view(copy: Path, folder: Path) -> Path:
    """Make a view of a copy, and return its folder.

    Args:
        copy: The files of a directory that were chosen; nothing else is in it.
        folder: An empty folder; the view is made in it.

    Raises:
        JobError: A JSON file is damaged.
    """
    view = folder / "view"
    for path in sorted(copy.rglob("*")):
        name = path.relative_to(copy)
        target = view / name
        if path.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".json" or path.name in _AS_THEY_ARE:
            os.symlink(path, target)
        else:
            target.write_text(json.dumps(cleaned(read_json(copy, str(name)))))
    return view


def cleaned(value: Any) -> Any:
    """Return a JSON value without the keys that name code, other places or kernels."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items() if key not in _DROPPED}
    return [cleaned(item) for item in value] if isinstance(value, list) else value
