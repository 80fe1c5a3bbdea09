"""Create an object at most once, although the answer to a write may be lost."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from pipeline.core.backoff import Retries
from pipeline.core.errors import InfraError, PipelineError

_TIME_LIMIT_S = 60.0


class CreateOutcome(StrEnum):
    """The writer of the object that exists now."""

    CREATED = "created"
    MINE = "mine"
    """It has our token: an earlier try of this process made it, and the response was lost."""
    OTHER = "other"


def create_once(
    create: Callable[[], bool], read: Callable[[], bytes], token: str, url: str
) -> CreateOutcome:
    """Create an object unless it exists; of many writers exactly one creates it.

    Args:
        create: Writes the object if it does not exist; returns whether it did.
        read: Reads the object; raises FileNotFoundError if it does not exist.
        token: Unique to this call and part of the data, so that its own object is recognised.
        url: The object, for messages.

    Raises:
        InfraError: The outcome is still unclear after several tries.
    """
    trouble: PipelineError | None = None
    retries = Retries(limit_s=_TIME_LIMIT_S)
    while True:
        try:
            if create():
                return CreateOutcome.CREATED
        except InfraError as error:
            trouble = error
        try:
            is_mine = token.encode() in read()
        except FileNotFoundError:
            pass
        except InfraError as error:
            trouble = error
        else:
            return CreateOutcome.MINE if is_mine else CreateOutcome.OTHER
        if not retries.wait():
            break
    cause = trouble or "the store says both that it exists and that it does not"
    raise InfraError(
        f"cannot create {url}: after several tries it is unclear whether it was created; {cause}"
    )
