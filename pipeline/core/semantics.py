"""Versions of all that decides a prediction: areas of this package, and installed libraries.

Each area has a number that is kept by hand. Raise it when the same input gives another output
there, also if a default of its settings changes: fingerprints hold only what differs from defaults.
Fingerprints and the node cache hold the numbers instead of the source text, so that a comment or a
moved file makes nothing stale. tests/integration/test_semantics.py holds digests of the outputs
over a fixed corpus, and fails if they change while the number stays.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pipeline.core.media import DECODERS

SEMANTICS: Mapping[str, int] = {
    "images": 2,
    "audio": 2,
    "parquet": 4,
    "delta": 1,
    "iceberg": 1,
    "jsonl": 5,
    "csv": 4,
    "webdataset": 3,
    "fetch": 1,
    "decode": 2,
    "transform": 2,
    "waveform": 3,
    "features": 1,
    "tokenize": 1,
    "predict": 5,
}
"""Area -> version. `images`, `audio`, `parquet`, `delta`, `iceberg`, `jsonl`, `csv`, `webdataset`:
rows, ids and values that a source yields (a change of `parquet` changes `delta` and `iceberg`,
too); `fetch`: what a URI column may name; `waveform`: what a clip of sound becomes; `predict`:
normalisation, export, weights, tasks."""


def semantics_of(input_areas: Mapping[str, int], *, has_uris: bool) -> dict[str, int]:
    """Return the numbers of the areas that a job goes through.

    Args:
        input_areas: Areas and numbers of the source format and of the input, which installed
            packages may bring.
        has_uris: Images are fetched from the URIs of a column.
    """
    areas = ["predict", *(["fetch"] if has_uris else [])]
    versions = {**input_areas, **{area: SEMANTICS[area] for area in areas}}
    return {area: versions[area] for area in sorted(versions)}


_PACKAGES = ("batch-inference-pipeline", "ray", "torch", "torchvision", "pyarrow", "pillow")
_ENVIRONMENT = (
    *DECODERS,
    *("torchvision", "tokenizers", "transformers", "timm", "soxr", "torchaudio", "llguidance"),
    *("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "MNN", "numpy", "pyarrow"),
)
"""Libraries that decode, tokenise, compute, or restrict the tokens of a text. libjpeg and the like
come with Pillow and torchvision. With torchaudio, transformers computes some spectrograms in
another way."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that every run uses."""
    return {"python": platform.python_version(), **_installed(_PACKAGES)}


def environment_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that decide predictions."""
    return _installed(_ENVIRONMENT)


def changed_versions(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """List the libraries that decide predictions and have changed: `pillow 12.2 -> 13.0`.

    A library that was not installed then decided nothing, and is not listed.
    """
    names = [name for name in _ENVIRONMENT if name in then and then[name] != now.get(name)]
    return tuple(f"{name} {then[name]} -> {now.get(name, 'none')}" for name in names)


@functools.cache
def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    versions = {name: _version_of(name) for name in names}
    return {name: number for name, number in versions.items() if number is not None}
