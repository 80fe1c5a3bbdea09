"""What `tokenizer_config.json` says against `tokenizer.json`: as the library takes both."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AS_THE_FILE = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast")
"""Classes that take tokenizer.json as it is, whatever else is written beside it."""
_LOWER, _ACCENTS, _KEEPS, _CHINESE = (
    *("do_lower_case", "strip_accents", "keep_accents"),
    "tokenize_chinese_chars",
)


def require_agreement(
    settings: Mapping[str, Any], model_type: str, tokenizer: Tokenizer, where: str
) -> None:
    """Refuse a tokenizer that the library would build anew with another normaliser.

    Args:
        settings: The content of tokenizer_config.json.
        model_type: Of config.json.
        tokenizer: That of tokenizer.json.
        where: The folder of both, '' or ending in `/`.

    Raises:
        JobError: The files disagree; names the field.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    usual = TOKENIZER_MAPPING_NAMES.get(model_type)
    name = settings.get("tokenizer_class") or usual
    if not isinstance(name, str) or usual in _AS_THE_FILE:
        return
    cls = tokenizer_class_from_name(name.removesuffix("Fast"))
    is_built_anew = inspect.isclass(cls) and issubclass(cls, PreTrainedTokenizerFast)
    if not is_built_anew or "__init__" not in cls.__dict__ or name in _AS_THE_FILE:
        return
    for field, (wanted, is_done) in _compared(cls, settings, tokenizer).items():
        if wanted != is_done:
            raise JobError(
                f"model.path: {where}tokenizer_config.json: {field} is {_shown(settings, field)}, "
                f"which {cls.__name__} of transformers goes by, and tokenizer.json does not; make "
                "them agree: AutoTokenizer.from_pretrained(DIR).save_pretrained(NEW)"
            )


def _shown(settings: Mapping[str, Any], field: str) -> str:
    return str(settings[field]).lower() if field in settings else "left out"


def _compared(
    cls: Any, settings: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, tuple[bool, bool]]:
    """Return per field what the class does to a text, and what the file does."""
    taken = inspect.signature(cls.__init__).parameters
    values = {
        name: settings.get(name, taken[name].default)
        for name in (_LOWER, _ACCENTS, _KEEPS, _CHINESE)
        if name in taken
    }
    if _LOWER not in values:
        return {}
    lowers, pairs = bool(values[_LOWER]), {}
    pairs[_LOWER] = (lowers, "a" in _normalised(tokenizer, "A"))
    decomposed = unicodedata.normalize("NFD", _normalised(tokenizer, "\u00e9"))
    strips = "\u0301" not in decomposed
    if _ACCENTS in values:
        wanted = values[_ACCENTS]
        pairs[_ACCENTS] = (lowers if wanted is None else bool(wanted), strips)
    if _KEEPS in values:
        pairs[_KEEPS] = (not values[_KEEPS], strips)
    if _CHINESE in values:
        pairs[_CHINESE] = (bool(values[_CHINESE]), " " in _normalised(tokenizer, "\u4e2d"))
    return pairs


def _normalised(tokenizer: Tokenizer, text: str) -> str:
    return text if tokenizer.normalizer is None else str(tokenizer.normalizer.normalize_str(text))
