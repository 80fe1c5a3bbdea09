"""Build the module of a model directory: code of the installed library, numbers of the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.core.registry import TASKS, built_in
from pipeline.models.directories.facts import (
    TOWERS,
    DirectoryFacts,
    LibraryClass,
    OnnxFile,
    TextFacts,
    TimmModel,
)
from pipeline.models.directories.files import CONFIG, read_object
from pipeline.models.directories.onnx.choice import onnx_file_of
from pipeline.models.generate.spec import WRITERS
from pipeline.models.tasks import served_as, task_class
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.model_input import Input

if TYPE_CHECKING:
    import torch


def build_module(
    path: Path,
    facts: DirectoryFacts,
    task: TaskSpec,
    model_input: Input | None = None,
) -> torch.nn.Module:
    """Build the module of a local directory: float32, on the CPU, in eval mode.

    Args:
        facts: What `read_facts` read of it; the job may have another pooling.
        task: What the outputs are for.
        model_input: What a model that writes or chooses sees of a row.

    Returns:
        Takes the tensors of `facts.text.tensor_names` by name, or `pixels` float (B, 3, H, W),
        normalised; returns logits (B, K), of tokens (B, L, K), or embeddings (B, D); of a detector
        `logits` and `pred_boxes`.

    Raises:
        JobError: The directory does not serve the task, or its weights do not fit.
    """
    served = require_served(task.kind, facts)
    if isinstance(facts.module, OnnxFile):
        from pipeline.models.directories.text.pooling import Pooled
        from pipeline.models.onnx_module import OnnxModule

        file = onnx_file_of(path)
        assert file is not None, "its facts were read"
        pooled = Pooled(path, facts.pooling) if facts.pooling and served == "embed" else None
        return OnnxModule.for_task(file, facts.module, served, pooled).eval()
    if isinstance(facts.module, TimmModel):
        from pipeline.models.directories.image.timm_models import timm_module

        module = timm_module(path, embeds=served == "embed")
    else:
        module = _class_module(path, facts, facts.module, task)
    if isinstance(facts.module, LibraryClass) and facts.module.head in WRITERS:
        assert model_input is not None, "a job has an input"
        module = _language_module(path, facts, facts.module.head, module, task, model_input)
    elif task.prompts and facts.text is not None:
        from pipeline.models.directories.text.zero_shot import with_prompts

        module = with_prompts(path, facts, module, task.prompts)
    return module.eval().requires_grad_(False)


def require_served(task: str, facts: DirectoryFacts) -> str:
    """Return the task whose outputs a directory gives for a task; see `served_as`.

    Raises:
        JobError: It does not serve the task.
    """
    served = served_as(task, facts.tasks)
    if served is None:
        reduced = ", ".join(task_class(task).reduces) or "none (`reduces` of its class)"
        hint = "" if task in built_in(TASKS) else f", and the task reduces {reduced}"
        for other, way in task_class(task).instead.items():
            if other in facts.tasks:
                hint = f"; take task {other!r}, {way}"
        raise JobError(
            f"model.task = {task!r}: {facts.architecture} of model.path serves "
            f"{', '.join(facts.tasks)}{hint}"
        )
    return served


def _language_module(
    path: Path,
    facts: DirectoryFacts,
    head: str,
    model: torch.nn.Module,
    task: TaskSpec,
    model_input: Input,
) -> torch.nn.Module:
    if task.generation is None:
        from pipeline.models.directories.text.choices import with_choices

        return with_choices(head, model, task, model_input)
    from pipeline.models.directories.text.tokens import output_tokenizer
    from pipeline.models.generate.build import with_decoding

    return with_decoding(head, model, task, output_tokenizer(path, facts, model_input))


def _class_module(
    path: Path, facts: DirectoryFacts, named: LibraryClass, task: TaskSpec
) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import DetectorModule, ImageModule
    from pipeline.models.directories.text.pooling import Logits, Pooled, TextModule

    model = _library_module(path, named)
    if named.head == TOWERS:
        return _tower(path, facts, task, model)
    if named.head == "detection":
        return DetectorModule(model)
    if named.head in WRITERS:
        return model
    if facts.text is None:
        return ImageModule(model, facts.pooling.modes[0] if facts.pooling else "logits")
    return TextModule(model, Pooled(path, facts.pooling) if facts.pooling else Logits())


def _tower(
    path: Path, facts: DirectoryFacts, task: TaskSpec, model: torch.nn.Module
) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import (
        AudioTower,
        ImageTower,
        ImageZeroShot,
    )

    if facts.audio is not None:
        return AudioTower(model)
    if facts.text is not None:
        return _text_tower(model, facts, facts.text)
    if not task.prompts:
        return ImageTower(model)
    from pipeline.models.directories.text.zero_shot import EncoderZeroShot, token_ids

    text = facts.prompt_text
    assert text is not None, "it serves zero_shot"
    ids = token_ids(path, text, task.prompts)
    encoder = EncoderZeroShot(_text_tower(model, facts, text), ids, text.pad_id)  # only once
    return ImageZeroShot(model, encoder.prompts)


def _text_tower(model: torch.nn.Module, facts: DirectoryFacts, text: TextFacts) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import TextTower

    fills = facts.architecture.startswith("Siglip")
    return TextTower(model, text.max_tokens if fills else None, text.pad_id)


def _library_module(path: Path, facts: LibraryClass) -> torch.nn.Module:
    from pipeline.models.directories.library import config_of, named_class
    from pipeline.models.directories.loading import load

    config = config_of(read_object(path / facts.at, CONFIG))
    return load(named_class(facts.built, config), config, path / facts.at, facts.absent)
