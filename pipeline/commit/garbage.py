"""Find what an output no longer needs."""

from __future__ import annotations

from pathlib import Path

from pipeline.storage.store import Store, StoredFile


def unneeded_models(store: Store, grace_s: float) -> list[StoredFile]:
    """Find calibrated models that nothing names: no profile, and no run's choice.

    Args:
        store: The output.
        grace_s: Younger ones may be named in a moment.
    """
    now = store.now()
    models = [
        file
        for file in store.list_files("_control/models")
        if file.modified and (now - file.modified).total_seconds() > grace_s
    ]
    if not models:
        return []
    folders = ["_control/profiles"]
    folders += [f"_control/{name}/choice" for name in store.list_folders("_control")]
    named = b"".join(
        store.read_bytes(file.path) for folder in folders for file in store.list_files(folder)
    )
    return [file for file in models if Path(file.path).stem.encode() not in named]
