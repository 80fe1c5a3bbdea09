"""The base of all sections of the job file: frozen, strict, without unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

PositiveInt = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
NotNegative = Annotated[float, Field(ge=0)]
TEXT, NUMBER, LIST, MAPPING = (Tag(f"<{form}>") for form in ("text", "number", "list", "mapping"))
"""The forms of a value, for fields that accept several; see `by_form`."""


class Section(BaseModel):
    """The strict base of all sections."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )


def by_form(expected: str) -> Discriminator:
    """Choose one of several types by the form of a value, so that only that type reports errors.

    Args:
        expected: The valid forms, for the error of a value that has none of them.
    """
    return Discriminator(
        _form_of, custom_error_type="form", custom_error_message=f"Input should be {expected}"
    )


def _form_of(value: Any) -> str | None:
    if isinstance(value, dict | Section):
        return MAPPING.tag
    if isinstance(value, list | tuple):
        return LIST.tag
    forms = {str: TEXT, int: NUMBER, float: NUMBER, bool: NUMBER}
    return forms[type(value)].tag if type(value) in forms else None


Texts = Annotated[
    Annotated[str, TEXT] | Annotated[tuple[str, ...], LIST],
    by_form("a valid string or a valid array"),
]
TextsByName = Annotated[
    Annotated[tuple[str, ...], LIST] | Annotated[dict[str, str], MAPPING],
    by_form("a valid array or an object"),
]
