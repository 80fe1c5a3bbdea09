"""Describe names that are not models here: a folder, a file, a name of a hub."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.printable import clean_message


def describe_name(name: str) -> str | None:
    """Return what a name means elsewhere, and how to run that model here; None if unknown."""
    path = Path(name).expanduser()
    try:
        if path.is_dir() or (path.is_file() and path.suffix == ".onnx"):
            what = "folder" if path.is_dir() else "file"
            return f"is a {what}: model directories and .onnx files are named by model.path"
        if path.is_file():
            return f"is a file. Write model.weights: {name} and name its architecture"
    except (OSError, ValueError):
        return None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        told = clean_message(name)[:200]
        return (
            "looks like a name on a model hub, and nothing is downloaded by a run: "
            f"`pipeline pull hf://{told} FOLDER`, then model.path: FOLDER"
        )
    return None
