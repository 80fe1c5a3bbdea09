"""Import user code that a job names, only below prefixes that the command line allows."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.environment import ALLOW_IMPORT
from pipeline.core.errors import JobError
from pipeline.core.user_code.user_errors import describe_user_error


def require_allowed(field: str, target: str, allow_import: Sequence[str]) -> None:
    """Check `package.module:callable` against the allowed prefixes.

    Args:
        field: The job's field, for messages.
        target: The value of the field.
        allow_import: Prefixes beside those of the environment variable PIPELINE_ALLOW_IMPORT.

    Raises:
        JobError: The form is wrong, or the prefix is not allowed; nothing was imported.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not attribute.isidentifier() or attribute.startswith("_"):
        raise JobError(f"{field} = {target!r}: write package.module:callable")
    from_environment = os.environ.get(ALLOW_IMPORT, "").split(",")
    allowed = [prefix.strip() for prefix in (*allow_import, *from_environment) if prefix.strip()]
    if not any(module_name == p or module_name.startswith(p + ".") for p in allowed):
        raise JobError(
            f"{field} = {target!r}: importing {module_name} is not allowed; pass "
            f"--allow-import {module_name} or set {ALLOW_IMPORT}"
        )


def import_callable(field: str, target: str) -> Callable[..., Any]:
    """Import a target that `require_allowed` has accepted.

    Raises:
        JobError: It cannot be imported, or is not callable.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        reason = describe_user_error(error, module_name)
        raise JobError(f"{field} = {target!r}: cannot import: {reason}") from error
    build = getattr(module, attribute, None)
    if not callable(build):
        raise JobError(f"{field} = {target!r}: {module_name} has no callable {attribute}")
    return build  # type: ignore[no-any-return]  # checked when its result arrives


def source_digest(field: str, target: str) -> str:
    """Digest the source file of a module, without importing the module itself.

    Args:
        field: The job's field, for messages.
        target: `package.module:name`; packages around the module are imported.

    Raises:
        JobError: There is no such module, or it has no source file.
    """
    module_name = target.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:  # what is around it is no package
        spec = None
    except Exception as error:  # a user's package may raise anything
        reason = describe_user_error(error, module_name)
        raise JobError(f"{field} = {target!r}: cannot import: {reason}") from error
    if spec is None:
        raise JobError(f"{field} = {target!r}: there is no module {module_name}")
    if spec.origin is None or not Path(spec.origin).is_file():
        raise JobError(
            f"{field} = {target!r}: {module_name} has no source file, so its changes go unnoticed"
        )
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def check_arguments(
    field: str, target: str, function: Callable[..., Any], args: Mapping[str, Any]
) -> None:
    """Check that a function can be called with arguments by name; nothing is called.

    Args:
        field: The job's field that names the function; the arguments of `SECTION.factory` are
            `SECTION.args`, those of another field `FIELD_args`.
        target: The value of the field, for messages.
        function: What was imported.
        args: Name -> value.

    Raises:
        JobError: Required arguments are missing, or there are some that it does not take.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    section, _, last = field.rpartition(".")
    where = f"{section}.args" if last == "factory" else f"{field}_args"
    try:
        signature.bind(**args)
    except TypeError as error:
        raise JobError(
            f"{field} = {target!r}: {error}, with those of {where}; it takes {signature}"
        ) from None
