"""Let transformers build a class with the weights of a directory, and refuse what does not fit.

The library renames, ties and ignores tensors as it declares for each family; its own report of what
is missing, unexpected or of another shape is refused here instead of being filled with random
numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.errors import JobError
from pipeline.models.directories.files import CONFIG
from pipeline.models.directories.library import quiet, refused
from pipeline.models.directories.tensors import (
    TensorHeader,
    meta_tensors,
    require_numbers,
    require_size,
)
from pipeline.models.weights.state_dict import listed_problems

if TYPE_CHECKING:
    import torch

_POOLER = "pooler"
"""What the library calls a layer over the vectors of an encoder."""


class Fit(NamedTuple):
    """How the tensors of a directory fit a class."""

    module: torch.nn.Module
    """On the device `meta`: shapes without numbers."""
    missing: tuple[str, ...]
    """Tensors that no file has."""
    unused: tuple[str, ...]
    """Tensors of heads that the class does not have."""


def check_fit(cls: Any, config: Any, headers: Mapping[str, TensorHeader], head: str) -> Fit:
    """Refuse a config and files that do not fit, without the memory of either.

    Args:
        cls: A class of transformers.
        config: Its configuration.
        headers: Of the files.
        head: As `LibraryClass.head`.

    Raises:
        JobError: Tensors are superfluous, of other shapes or types, or fewer than the class needs.
    """
    import torch

    with quiet(), torch.device("meta"):
        try:
            module = cls(config)
        except Exception as error:
            raise refused(error, f"builds no {cls.__name__} of this config.json") from error
    require_size(module, headers, CONFIG)
    numbers = {name: header for name, header in headers.items() if header.is_number}
    _, report = _from_pretrained(cls, config, None, meta_tensors(numbers))
    unused = _require_fit(cls, module, report, head)
    missing = report["missing_keys"]
    if missing:
        require_numbers(headers)
    return Fit(module, tuple(sorted(missing)), tuple(sorted(unused)))


def load(cls: Any, config: Any, folder: Path, absent: Collection[str]) -> torch.nn.Module:
    """Load a class of the library from a folder, in float32 on the CPU, in eval mode.

    Args:
        cls: A class of transformers.
        config: Its configuration.
        folder: Has the weights that `check_fit` took; nothing else of it is read.
        absent: Tensors that no file has, and no prediction reads.

    Raises:
        JobError: The library loads nothing, or a tensor is missing or of another shape.
    """
    module: torch.nn.Module
    module, report = _from_pretrained(cls, config, folder)
    require_no_problems(cls, report["missing_keys"] - {*absent}, (), report["mismatched_keys"])
    leave_out(module, absent)
    module.eval()
    return module


def _from_pretrained(
    cls: Any,
    config: Any,
    folder: Path | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Return the library's module, and its report."""
    import torch
    from transformers import GenerationConfig

    options: dict[str, Any] = {
        **{"config": config, "state_dict": tensors and dict(tensors), "dtype": torch.float32},
        **{"local_files_only": True, "trust_remote_code": False, "use_safetensors": True},
        **{"output_loading_info": True, "ignore_mismatched_sizes": True},
        "attn_implementation": _attention(cls, config),
    }
    if cls.can_generate():  # how a text is written is read elsewhere
        options["generation_config"] = GenerationConfig.from_model_config(config)
    with quiet():
        try:
            module, report = cls.from_pretrained(folder, **options)
        except Exception as error:
            raise refused(error, f"loads no {cls.__name__} from these tensors") from error
    return module, report


def _require_fit(cls: Any, module: Any, report: Mapping[str, Any], head: str) -> set[str]:
    """Return the tensors of heads that the class does not have; refuse what else does not fit.

    An encoder leaves aside all heads, which lie beside it. A class with a head leaves aside layers
    over its encoder that it has not, which files often keep from the encoder's training.
    """
    base = getattr(module, cls.base_model_prefix, module)
    prefix, parts = f"{cls.base_model_prefix}.", {name for name, _ in base.named_children()}
    unused = {
        name
        for name in report["unexpected_keys"]
        if name.removeprefix(prefix).partition(".")[0] not in parts
        and (head == "none" or name.removeprefix(prefix).startswith(f"{_POOLER}."))
    }
    unexpected = report["unexpected_keys"] - unused
    require_no_problems(cls, (), unexpected, report["mismatched_keys"])
    return unused


def require_no_problems(
    cls: Any,
    missing: Collection[str],
    unexpected: Collection[str] = (),
    mismatched: Collection[Any] = (),
) -> None:
    """Refuse a class that the tensors do not fit.

    Raises:
        JobError: Tensors are missing, superfluous or of another shape; names them.
    """
    other = [f"{key} is {tuple(held)}, not {tuple(wanted)}" for key, held, wanted in mismatched]
    problems = listed_problems(
        (sorted(missing), "missing"),
        (sorted(unexpected), "unexpected"),
        (sorted(other), "of another shape"),
    )
    if problems:
        raise JobError(
            f"model.path: the safetensors do not fit {cls.__name__} of config.json: tensors "
            f"{problems}"
        )


def leave_out(module: torch.nn.Module, names: Collection[str]) -> None:
    """Take tensors out of a module, and the whole of a layer over an encoder that has any of them.

    Args:
        module: It is changed; what reads one of them raises an error from now on.
        names: Of tensors.
    """
    for name in names:
        path, _, leaf = name.rpartition(".")
        before, is_pooler, _ = f".{path}".partition(f".{_POOLER}")
        part: Any = module.get_submodule(before[1:] if is_pooler else path)
        if is_pooler:
            part.pooler = None
        elif hasattr(part, leaf):
            delattr(part, leaf)


def _attention(cls: Any, config: Any) -> str | None:
    """Return which of the library's attentions is loaded: SDPA if the class has it.

    None leaves it to the library: a backbone, encoder or decoder within the model may lack what the
    model has.

    In layers that see a window, padding behind it sees nothing at all; OpenVINO's SDPA makes NaN of
    that, which spreads to the texts. The library's eager attention does not; see `use_sdpa`.
    """
    if any(getattr(config, name, None) is not None for name in ("backbone_config", "encoder")):
        return None
    return "sdpa" if getattr(cls, "_supports_sdpa", False) and not _has_windows(config) else "eager"


def _has_windows(config: Any) -> bool:
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def use_sdpa(module: torch.nn.Module) -> None:
    """Let layers that see a window take torch's SDPA, where the library can change it.

    Eager attention holds L x L scores per head: 8 texts of 8,192 tokens do not fit a GPU. torch's
    own SDPA makes no NaN. It has no caps of scores, so models with these stay as they are.

    Args:
        module: Of a model directory; it is changed.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        is_capped = getattr(config, "attn_logit_softcapping", None) is not None
        if _has_windows(config) and getattr(part, "_supports_sdpa", False) and not is_capped:
            with quiet():
                part.set_attn_implementation("sdpa")  # type: ignore[operator]
