"""A view of a copy of a model directory that is safe to give to the directory's own library.

Weights and tokenizers are links; JSON files that libraries read settings from are written anew,
without the keys that name code, other places or kernels, at every depth.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.files import INDEX, TOKENIZER, preview, read_json

_AS_THEY_ARE = (TOKENIZER, INDEX)
"""JSON files that are data of their own: a vocabulary may have any word."""
_DROPPED = frozenset(
    (
        *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
        *("_experts_implementation", "_experts_implementation_internal", "_name_or_path"),
        *("attn_implementation", "auto_map", "base_model_name_or_path", "configuration_files"),
        *("custom_generate", "custom_pipelines", "distributed_config", "experts_implementation"),
        *("fast_tokenizer_files", "fusion_config", "kernel_config", "name_or_path"),
        *("trust_remote_code", "use_kernels"),
    )
)
"""Keys that say where a model came from, which code or which kernels run it, not what it is."""
QUANTISED = "quantised weights are not read; take the float weights of this model"
_ELSEWHERE = "names other files than those of the directory; take it out"
_REFUSED = {
    **dict.fromkeys(("compression_config", "quantization_config"), QUANTISED),
    **dict.fromkeys(("checkpoint_path", "gguf_file", "transformers_weights"), _ELSEWHERE),
}
"""Keys by which a library would compute with other numbers than those of the files."""
_ARCHITECTURES = ("architecture", "backbone")
_NAME = re.compile(r"[\w.-]+")
"""What an architecture of timm can be called; others are looked up in the hub or in a folder."""


def make_view(copy: Path, folder: Path) -> Path:
    """Make a view of a copy, and return its folder.

    Args:
        copy: The files of a directory that were chosen; nothing else is in it.
        folder: An empty folder; the view is made in it.

    Raises:
        JobError: A JSON file is damaged, or names files or models elsewhere.
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
            target.write_text(json.dumps(cleaned(read_json(copy, str(name)), str(name))))
    return view


def cleaned(value: Any, name: str) -> Any:
    """Return the content of a JSON file without the keys that name code, other places or kernels.

    Raises:
        JobError: It names files or models elsewhere, or quantised weights, at any depth.
    """
    if isinstance(value, list):
        return [cleaned(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    for key in _REFUSED.keys() & value.keys():
        if value[key]:
            raise JobError(f"model.path: {name} has {key}: {_REFUSED[key]}")
    for key in _ARCHITECTURES:
        architecture = value.get(key)
        if isinstance(architecture, str) and not _NAME.fullmatch(architecture):
            raise JobError(
                f"model.path: {name}: {key} is {preview(architecture)}, expected the name of an "
                "architecture that the installed library has"
            )
    return {key: cleaned(item, name) for key, item in value.items() if key not in _DROPPED}
