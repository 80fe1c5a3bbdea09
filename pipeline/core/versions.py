"""Versions of what is installed here: told in reports, and compared before rows are carried over.

Only the metadata of distributions is read; nothing is imported.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pipeline.core.media import DECODERS

_PACKAGES = ("batch-inference-pipeline", "ray", "torch", "torchvision", "pyarrow", "pillow")
_ENVIRONMENT = (
    *DECODERS,
    *("torchvision", "tokenizers", "transformers", "timm", "soxr", "torchaudio", "llguidance"),
    *("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "MNN", "numpy", "pyarrow"),
)
"""What decodes, tokenises, computes or says which tokens may come. libjpeg and its like come with
Pillow and torchvision. With torchaudio transformers computes some spectrograms otherwise."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that every run uses."""
    return {"python": platform.python_version(), **_installed(_PACKAGES)}


def environment_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that decide predictions."""
    return _installed(_ENVIRONMENT)


def changed_versions(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Say which libraries that decide predictions are not what they were: `pillow 12.2 -> 13.0`.

    What was not there decided nothing then, and is not among them.
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
