"""What the config of a feature extractor says, as settings of the input `audio`.

Numbers are data and bounded; classes are those of an allow-list. What makes features depend on
chance, as dither does, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.chosen import CONFIG, ModelClass
from pipeline.models.directories.image.image_transform import BOTH, PROCESSOR
from pipeline.models.directories.json_files import preview, read_bool, read_object, read_str
from pipeline.preprocessing.audio.audio_settings import (
    NORMALISED,
    SPECTROGRAMS,
    USUAL_MAX_S,
    AudioSettings,
)

_AST, _WHISPER = SPECTROGRAMS
_CLASSES = (NORMALISED, *SPECTROGRAMS)
_RATE = ("sampling_rate", 16_000, range(1_000, 768_001))
_WHOLE = {
    NORMALISED: (_RATE,),
    _AST: (_RATE, ("num_mel_bins", 128, range(1, 513)), ("max_length", 1_024, range(1, 16_385))),
    _WHISPER: (
        _RATE,
        ("feature_size", 80, range(1, 513)),
        ("hop_length", 160, range(16, 4_097)),
        ("chunk_length", 30, range(1, 121)),
        ("n_fft", 400, range(16, 8_193)),
    ),
}
"""Class -> the whole numbers that it takes: name, the library's default, and what can be."""
_HOP_S = 0.01
"""Of AST, from frame to frame."""


def read_extractor(folder: Path, chosen: ModelClass) -> tuple[AudioSettings, str]:
    """Read the feature extractor of a snapshot.

    Returns:
        The settings, with the longest clip that the model hears, and what is said of them.

    Raises:
        JobError: There is none, or one that is not known here.
    """
    where, values = _values(folder, chosen.at)
    name = read_str(values, "feature_extractor_type", where) or _usual(chosen)
    if not values or name not in _CLASSES:
        found = f"its feature extractor is {preview(name)}" if values else f"no {PROCESSOR}"
        raise JobError(f"model.path: {where}: {found}, expected one of {', '.join(_CLASSES)}")
    options: dict[str, Any] = {
        key: _whole(values, key, usual, may, where) for key, usual, may in _WHOLE[name]
    }
    rate = options["sampling_rate"]
    if name == NORMALISED:
        if values.get("feature_size", 1) != 1:
            size = preview(values["feature_size"])
            raise JobError(f"model.path: {where}: feature_size is {size}, expected 1")
        options["do_normalize"] = read_bool(values, "do_normalize", where, True)
        made = AudioSettings(rate, USUAL_MAX_S, name, options)
        how = "normalised, " if options["do_normalize"] else ""
        return made, f"{where}: {rate} Hz, {how}clips of any length"
    if name == _AST:
        options["do_normalize"] = read_bool(values, "do_normalize", where, True)
        options |= {key: _real(values, key, usual, where) for key, usual in _AST_NUMBERS.items()}
        shape, window_s = (options["max_length"], options["num_mel_bins"]), 0.0
        window_s = options["max_length"] * _HOP_S
        _require_as_config(chosen, where, {"num_mel_bins": shape[1], "max_length": shape[0]})
    else:
        if values.get("dither") or values.get("padding_side", "right") != "right":
            raise JobError(
                f"model.path: {where}: expected no dither, and padding_side right; dither is "
                f"{preview(values.get('dither'))}, the other {preview(values.get('padding_side'))}"
            )
        options["padding_value"] = _real(values, "padding_value", 0.0, where)
        window_s = float(options["chunk_length"])
        shape = (options["feature_size"], options["chunk_length"] * rate // options["hop_length"])
        _require_as_config(
            chosen, where, {"num_mel_bins": shape[0], "max_source_positions": shape[1] // 2}
        )
    made = AudioSettings(rate, min(USUAL_MAX_S, window_s), name, options, shape)
    frames = " x ".join(map(str, shape))
    return made, f"{where}: {rate} Hz, {frames} features of clips up to {window_s:g} s ({name})"


_AST_NUMBERS = {"mean": -4.2677393, "std": 4.5689974}


def _values(folder: Path, at: str) -> tuple[str, Mapping[str, Any]]:
    both = read_object(folder, at + BOTH, optional=True).get("feature_extractor")
    if isinstance(both, dict):
        return at + BOTH, both
    return at + PROCESSOR, read_object(folder, at + PROCESSOR, optional=True)


def _usual(chosen: ModelClass) -> str | None:
    """Return the extractor that the library takes for a model type if the file names none."""
    from transformers import FEATURE_EXTRACTOR_MAPPING

    found = FEATURE_EXTRACTOR_MAPPING.get(type(chosen.config), None)
    return None if found is None else str(found.__name__)


def _whole(values: Mapping[str, Any], key: str, usual: int, may: range, where: str) -> int:
    found = values.get(key, usual)
    if type(found) is not int or found not in may:
        raise JobError(
            f"model.path: {where}: {key} is {preview(found)}, expected a whole number from "
            f"{may[0]} to {may[-1]}"
        )
    return found


def _real(values: Mapping[str, Any], key: str, usual: float, where: str) -> float:
    found = values.get(key, usual)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not abs(found) < _MOST or (key == "std" and not found):
        raise JobError(f"model.path: {where}: {key} is {preview(found)}, expected a number")
    return float(found)


_MOST = 1e6


def _require_as_config(chosen: ModelClass, where: str, wanted: Mapping[str, int]) -> None:
    """Refuse features of another shape than the model takes.

    Raises:
        JobError: Names both numbers.
    """
    for key, number in wanted.items():
        if (found := getattr(chosen.config, key, None)) != number:
            raise JobError(
                f"model.path: {CONFIG}: {key} is {preview(found)}, and {where} makes {number}"
            )
