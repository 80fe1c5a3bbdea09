"""Build a class of transformers with our tensors, and refuse what does not fit.

The library renames, ties and ignores tensors as it declares for each family; its own report of what
is missing, unexpected or of another shape is refused here instead of being filled with random
numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.library import base_of, quiet, refused
from pipeline.models.directories.tensors import TensorHeader, repeating_tensors, require_size
from pipeline.models.weights.state_dict import listed_problems

if TYPE_CHECKING:
    import torch

_POOLER = "encoder.pooler."
"""Of an encoder within a model, a layer over its vectors that no decoder looks at."""
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


def check_fit(
    cls: Any, named: Any, config: Any, headers: Mapping[str, TensorHeader]
) -> torch.nn.Module:
    """Refuse a config and files that do not fit, without the memory of either.

    Returns:
        The module, with numbers that mean nothing.

    Raises:
        JobError: Tensors are missing, superfluous or of other shapes.
    """
    import torch

    with quiet(), torch.device("meta"):
        try:
            module = cls(config, **pooler_option(cls, config, headers))
        except Exception as error:
            raise refused(error, f"builds no {cls.__name__} of this config.json") from error
    require_size(module, headers, "config.json")
    return load(cls, named, config, repeating_tensors(headers))


def load(cls: Any, named: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Build a class of the library with these tensors, in float32 on the CPU, in eval mode.

    Args:
        cls: What to build.
        named: The class that `architectures` names; its head may be among the tensors.
        tensors: By name, as in the files; they may become the module's own.

    Raises:
        JobError: Tensors are missing, superfluous or of other shapes.
    """
    import torch

    options = {
        "config": config,
        "state_dict": dict(tensors),
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
        "attn_implementation": _attention(cls, config),
        **pooler_option(cls, config, tensors),
    }
    with quiet():
        try:
            module, info = cls.from_pretrained(None, **options)
        except Exception as error:
            raise refused(error, f"loads no {cls.__name__} from these tensors") from error
    unexpected = set(info["unexpected_keys"])
    if unexpected and named is not cls:
        unexpected -= _names(named, config)
    if unexpected:
        unexpected -= _names_of_pooler(cls, config)
    missing = set(info["missing_keys"])
    if hasattr(config, "encoder") and any(name.startswith(_POOLER) for name in missing):
        # Decoders look at all vectors of an encoder, so TrOCR's files have none.
        missing = {name for name in missing if not name.startswith(_POOLER)}
        module.encoder.pooler = None
    _require_fit(cls.__name__, info, missing, unexpected)
    module.eval()
    return module  # type: ignore[no-any-return]


def _require_fit(
    name: str, info: Mapping[str, Any], missing: set[str], unexpected: set[str]
) -> None:
    other = sorted(
        f"{key} is {tuple(held)}, not {tuple(wanted)}"
        for key, held, wanted in info["mismatched_keys"]
    )
    problems = listed_problems(
        (sorted(missing), "missing"),
        (sorted(unexpected), "unexpected"),
        (other, "of another shape"),
    )
    if problems:
        raise JobError(
            f"model.path: the safetensors do not fit {name} of config.json: tensors {problems}"
        )


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


def pooler_option(cls: Any, config: Any, names: Iterable[str]) -> dict[str, bool]:
    """Return the option that leaves out a layer whose output is not used, if there is one.

    Args:
        cls: What is built.
        config: Of it.
        names: Of the tensors in the files.
    """
    if "add_pooling_layer" not in inspect.signature(cls.__init__).parameters:
        return {}
    if _pools_patches(config):
        return {"add_pooling_layer": any("pooler." in name for name in names)}
    is_used = cls.main_input_name == "pixel_values" and not has_class_token(cls, config)
    return {} if is_used else {"add_pooling_layer": False}


def has_class_token(cls: Any, config: Any) -> bool:
    """Tell whether the first vector of a model of images stands for the whole image."""
    return not _pools_patches(config) and any(
        name.endswith(_CLASS_TOKENS) for name in _names(cls, config)
    )


def _pools_patches(config: Any) -> bool:
    """Tell whether a model of images (BEiT, data2vec) has a class token and was trained without it.

    Its last layer norm is in its pooler, behind the mean of the patches.
    """
    return getattr(config, "use_mean_pooling", False) is True


def _names_of_pooler(cls: Any, config: Any) -> set[str]:
    """Return the names of a layer over the encoder that a class does not use.

    Classifiers that were trained from an encoder often keep it in their files.
    """
    base = base_of(config)
    if base is None:
        return set()
    names = [name for name in _names(base, config) if name.startswith("pooler.")]
    return {*names, *(f"{cls.base_model_prefix}.{name}" for name in names)}


def _names(cls: Any, config: Any) -> set[str]:
    """Return the names of all tensors of a class; no memory is used."""
    import torch

    with quiet(), torch.device("meta"):
        return set(cls(config).state_dict())
