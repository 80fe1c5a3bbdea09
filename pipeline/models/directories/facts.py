"""What a model directory says of itself: kind, input, tasks, labels, transform, tokens.

Only JSON, and the headers of safetensors, are read. Class, shapes and limits come from the
installed library; what it answers is kept per node, because its import takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.core.cache.node_cache import kept, key_of
from pipeline.core.errors import InfraError, JobError
from pipeline.models.directories.described import DirectoryFacts, InputKind, TextFacts
from pipeline.models.directories.json_files import is_timm, read_object
from pipeline.models.directories.onnx.choice import onnx_file_of
from pipeline.models.directories.text import sentence_transformers

__all__ = ["DirectoryFacts", "TextFacts", "read_facts"]

CONFIG = "config.json"
_VERSION = 7
"""Of what is kept; raise it if the same directory gives other facts."""
_PACKAGES = ("transformers", "tokenizers", "timm", "onnx", "onnxruntime")
_FILE = "facts.json"
_HEAD_BYTES = 8


def read_facts(path: Path, wanted: InputKind | None = None) -> DirectoryFacts:
    """Read what a local model directory says, and check that its weights fit.

    Args:
        path: A folder of `snapshot.open_directory`, or any local directory.
        wanted: What the job's rows are; it chooses between the towers of CLIP and SigLIP.

    Raises:
        JobError: The directory is refused; says why, and what would be right.
    """

    def write(folder: Path) -> None:
        facts = _read(path, wanted)
        (folder / _FILE).write_text(json.dumps(facts.to_dict()))

    try:
        folder = kept(
            key_of(["directory facts", _VERSION, _digest(path), wanted], _PACKAGES), write
        )
        values = json.loads((folder / _FILE).read_text())
    except (OSError, InfraError):  # the node cache is not writable
        return _read(path, wanted)
    return DirectoryFacts.from_dict(values)


def _digest(path: Path) -> str:
    """Digest names and content of a directory, of safetensors the headers alone."""
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            if file.suffix != ".safetensors":
                digest.update(hashlib.file_digest(opened, "sha256").digest())
                continue
            length = int.from_bytes(opened.read(_HEAD_BYTES), "little")
            digest.update(opened.read(min(length, 1 << 25)))
    return digest.hexdigest()


def _read(path: Path, wanted: InputKind | None) -> DirectoryFacts:
    if (file := onnx_file_of(path)) is not None:
        from pipeline.models.directories.onnx.file import read_onnx_facts

        return read_onnx_facts(file)
    if not path.is_dir():
        # One ONNX file is read elsewhere.
        raise JobError(f"model.path: {path.name} is a file, expected the directory of a model")
    if (path / sentence_transformers.MODULES).is_file():
        from pipeline.models.directories.text.encoder_facts import sentence_transformers_facts

        return sentence_transformers_facts(path)
    values = read_object(path, CONFIG)
    if is_timm(values):
        from pipeline.models.directories.image.timm_models import timm_facts

        return timm_facts(path, values)
    from pipeline.models.directories.chosen import choose
    from pipeline.models.directories.image.image_facts import image_facts, tower_facts
    from pipeline.models.directories.text.encoder_facts import encoder_facts

    chosen = choose(path)
    if chosen.has_towers:
        return tower_facts(path, chosen, wanted or "image")
    return encoder_facts(path, chosen) if chosen.takes_text else image_facts(path, chosen)
