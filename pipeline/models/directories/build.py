"""Build the module of a model directory: code of the installed library, numbers of the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.registry import TASKS, built_in
from pipeline.models.directories.facts import DirectoryFacts, TextFacts
from pipeline.models.directories.json_files import read_object
from pipeline.models.directories.onnx.choice import onnx_file_of
from pipeline.models.directories.tensors import read_headers, read_tensors
from pipeline.models.tasks import served_as, task_class
from pipeline.models.tasks.base import TaskSpec

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"


def build_module(
    path: Path, facts: DirectoryFacts, task: TaskSpec, args: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """Build the module of a local directory: float32, on the CPU, in eval mode.

    Args:
        path: The directory.
        facts: What `read_facts` read of it; `settings["pooling"]` may be replaced by the job's.
        task: What the outputs are for.
        args: `model.args`; a directory takes none.

    Returns:
        Takes the tensors of `facts.text.tensor_names` by name, or `pixels` float (B, 3, H, W),
        normalised; returns logits (B, K), of tokens (B, L, K), or embeddings (B, D); of a detector
        `logits` and `pred_boxes`.

    Raises:
        JobError: The directory does not serve the task, or its weights do not fit.
    """
    if args:
        raise JobError(f"model.args: a model directory takes none, got {', '.join(sorted(args))}")
    served = require_served(task.kind, facts)
    if (file := onnx_file_of(path)) is not None:
        from pipeline.models.onnx_module import OnnxModule

        return OnnxModule.for_task(file, facts.settings, served).eval()
    module = _module(path, facts, task, served)
    if task.prompts and facts.text is not None:
        from pipeline.models.directories.text.zero_shot import with_prompts

        module = with_prompts(path, facts, module, task.prompts)
    return module.eval().requires_grad_(False)


def require_served(task: str, facts: DirectoryFacts) -> str:
    """Return the task whose outputs a directory gives for a task; see `served_as`.

    Raises:
        JobError: It does not serve the task.
    """
    found = served_as(task, facts.tasks)
    if found is None:
        hint = "" if task in built_in(TASKS) else f", and the task reduces {_reduced(task)}"
        raise JobError(
            f"model.task = {task!r}: {facts.architecture} of model.path serves "
            f"{', '.join(facts.tasks)}{hint}"
        )
    return found


def _reduced(task: str) -> str:
    return ", ".join(task_class(task).reduces) or "none (`reduces` of its class)"


def _module(path: Path, facts: DirectoryFacts, task: TaskSpec, served: str) -> torch.nn.Module:
    if facts.kind == "timm":
        from pipeline.models.directories.image.timm_models import timm_module

        return timm_module(path, facts.settings, embeds=served == "embed")
    if "tower" in facts.settings:
        return _tower(path, facts, task)
    return _text_module(path, facts) if facts.input == "text" else _image_module(path, facts)


def _tower(path: Path, facts: DirectoryFacts, task: TaskSpec) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import ImageTower, ImageZeroShot

    model = _library_module(path, facts.settings)
    if facts.text is not None:
        return _text_tower(model, facts, facts.text)
    if not task.prompts:
        return ImageTower(model)
    from pipeline.models.directories.chosen import choose
    from pipeline.models.directories.image.image_facts import tower_facts
    from pipeline.models.directories.text.zero_shot import EncoderZeroShot, token_ids

    text = tower_facts(path, choose(path), "text").text
    assert text is not None, "the other tower takes texts"
    ids = token_ids(path, text, task.prompts)
    encoder = EncoderZeroShot(_text_tower(model, facts, text), ids, text.pad_id)  # only once
    return ImageZeroShot(model, encoder.prompts)


def _text_tower(model: torch.nn.Module, facts: DirectoryFacts, text: TextFacts) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import TextTower

    fills = facts.architecture.startswith("Siglip")
    return TextTower(model, text.max_tokens if fills else None, text.pad_id)


def _image_module(path: Path, facts: DirectoryFacts) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import DetectorModule, ImageModule

    if facts.settings["head"] == "detection":
        return DetectorModule(_library_module(path, facts.settings))
    output = facts.settings.get("pooling", "logits")
    poolings = facts.settings.get("poolings", [output])
    if output not in poolings:
        raise JobError(f"model.pooling = {output!r}: expected one of {', '.join(poolings)}")
    return ImageModule(_library_module(path, facts.settings), output)


def _text_module(path: Path, facts: DirectoryFacts) -> torch.nn.Module:
    from pipeline.models.directories.text.text_modules import Logits, PairModule, TextModule

    assert facts.text is not None, "texts have text facts"
    model = _library_module(path, facts.settings)
    output = Logits() if facts.settings["head"] != "none" else _pooled(path, facts.settings)
    has_types = "token_type_ids" in facts.text.tensor_names
    return (PairModule if has_types else TextModule)(model, output)


def _library_module(path: Path, settings: Mapping[str, Any]) -> torch.nn.Module:
    from pipeline.models.directories.library import config_of, named_class
    from pipeline.models.directories.loading import load

    folder = path / settings["at"]
    headers = read_headers(folder)
    config = config_of(read_object(folder, CONFIG), len(headers))
    named = named_class(settings["named"], config)
    built = named_class(settings["built"], config)
    return load(built, named, config, read_tensors(folder, headers))


def _pooled(path: Path, settings: Mapping[str, Any]) -> torch.nn.Module:
    from pipeline.models.directories.text.sentence_transformers import MODES
    from pipeline.models.directories.text.text_modules import Normalize, Pooled

    modes = settings["pooling"]
    modes = [modes] if isinstance(modes, str) else modes
    for mode in modes:
        if mode not in MODES:
            raise JobError(f"model.pooling = {mode!r}: expected one of {', '.join(MODES)}")
    layers = [
        Normalize() if each["layer"] == "normalize" else _dense(path, each)
        for each in settings["layers"]
    ]
    return Pooled(modes, settings["prompt_tokens"], layers)


def _dense(path: Path, settings: Mapping[str, Any]) -> torch.nn.Module:
    from pipeline.models.directories.text.text_modules import Dense
    from pipeline.models.weights.state_dict import load_state

    folder = path / settings["at"]
    module = Dense(
        settings["in_features"],
        settings["out_features"],
        bias=settings["bias"],
        activation=settings["activation"],
    )
    tensors = read_tensors(folder, read_headers(folder))
    load_state(module, tensors, None, f"model.path: {settings['at']}model.safetensors", "Dense")
    return module
