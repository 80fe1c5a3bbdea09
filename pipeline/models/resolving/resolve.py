"""Resolve a job's model section to a `ModelSpec`, on the driver.

No weights are loaded, and torch is imported only for a torchvision name that this node has not
cached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.figures import FIGURE_NAMES
from pipeline.core.registry import INPUTS, get
from pipeline.core.schema import GEOMETRY
from pipeline.core.user_code import extension_errors
from pipeline.job.transform import Audio
from pipeline.models.directories.facts import LibraryClass
from pipeline.models.directories.snapshot import local
from pipeline.models.directories.text.tokens import output_tokenizer
from pipeline.models.generate.grammar import Grammar
from pipeline.models.generate.spec import CAUSAL, Generation
from pipeline.models.resolving.input import choose_text, choose_transform, require_image_fits
from pipeline.models.resolving.named_model import ResolvedModel, find_card, with_weights
from pipeline.models.resolving.task import choose_task, task_name
from pipeline.models.spec import EAGER, ModelSpec
from pipeline.models.tasks import task_class
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.torchvision_catalog import torchvision_facts
from pipeline.models.weights.weights import WEIGHT_SUFFIXES, check_suffix, weights_digest
from pipeline.preprocessing.audio.audio_settings import USUAL_MAX_S, AudioSettings
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import Input, InputSettings

if TYPE_CHECKING:
    from pipeline.job.job import Job
    from pipeline.job.model import Model


log = logging.getLogger(__name__)


def resolve_model(job: Job, allow_import: Sequence[str] = ()) -> ModelSpec:
    """Find the model, its transform, labels and weights digest, without building it.

    Args:
        job: What its sections say wins over what the model says.
        allow_import: Prefixes of modules that `factory` may name, beside those of the
            environment variable PIPELINE_ALLOW_IMPORT.

    Raises:
        JobError: The model is unknown or not allowed, its weights or labels cannot be used, or
            the transform is incomplete.
    """
    model, has_pairs = job.model, job.source.text_pair_column is not None
    if job.source.input_parts:
        _require_several(model)
    card = find_card(model, allow_import, job.source.input_name, has_pairs=has_pairs)
    weights_sha256 = None
    if card.origin == "torchvision" and (model.weights or "").endswith(tuple(WEIGHT_SUFFIXES)):
        weights_sha256 = weights_digest(model.weights, model.weights_sha256, model.storage_options)
        card = with_weights(card, model, weights_sha256)
    name = task_name(model, card)
    task_type = task_class(name)
    if has_pairs and (model.choices or task_type.new_tokens(model) or task_type.is_per_token):
        raise JobError(f"source.text_pair_column: task {name!r} takes one text a row; leave it out")
    if has_pairs and card.facts and card.facts.text and card.facts.text.prompt:
        raise JobError(
            f"source.text_pair_column: {card.name} takes single texts, as those of a chat template "
            "and static embeddings are; leave it out"
        )
    weights_uri, (model_input, transform), task = _all_of(
        lambda: _weights_uri(card, model),
        lambda: _choose_input(card, job, allow_import),
        lambda: choose_task(model, card, allow_import),
    )
    task = replace(task, has_windows=job.text.windows is not None)
    _require_geometry(task, model_input, transform)
    _require_axes(task, model_input)
    if card.origin == "torchvision" and card.notes[1:] and not job.transform.model_fields_set:
        log.warning("%s", "; ".join(card.notes))
    if task.generation is not None and task.generation.schema:
        _require_writable(task.generation, card, model_input)
    if card.directory is not None:
        weights_sha256 = card.directory.sha256
    elif weights_sha256 is None:
        weights_sha256 = weights_digest(weights_uri, model.weights_sha256, model.storage_options)
    return ModelSpec(
        name=card.name,
        origin=card.origin,
        code_sha256=card.code_sha256,
        weights_uri=weights_uri,
        weights_sha256=weights_sha256,
        input=model_input,
        task=task,
        precision=model.precision,
        runtime=_runtime(model, name, card),
        is_pinned=model.is_pinned,
        layer=model.layer,
        storage_options=model.storage_options,
        weights_key=model.weights_key,
        args=model.args,
        directory=card.directory,
        facts=card.facts,
        pooling=model.pooling,
        notes=card.notes,
    )


def _runtime(model: Model, task: str, card: ResolvedModel) -> str:
    """Return the runtime, or the name of an engine that the job names.

    Raises:
        JobError: That engine does not run the model.
    """
    if model.engine not in task_class(task).other_engines:
        if card.facts and card.facts.quantised:
            raise JobError(
                f"model.path = {model.path}: weights quantised by {card.facts.quantised} need "
                "model.engine: vllm; or take the float weights of this model"
            )
        return model.runtime or EAGER
    module, written = (card.facts.module, card.facts.generation) if card.facts else (None, None)
    has_image = written is not None and written.image_mark
    if not isinstance(module, LibraryClass) or (module.head != CAUSAL and not has_image):
        name = card.facts.architecture if card.facts else card.name
        raise JobError(
            f"model.engine = {model.engine!r}: {name} does not continue a text, or a prompt "
            "with an image; leave it out"
        )
    return str(model.engine)


def _require_geometry(task: TaskSpec, model_input: Input, transform: TransformSpec | None) -> None:
    """Refuse rows with unknown places in the original, if the task needs these."""
    if not task_class(task.kind).needs_geometry:
        return
    if GEOMETRY not in (field.name for field in model_input.fields()):
        raise JobError(f"model.task = {task.kind!r}: needs images; the rows are {model_input.name}")
    if transform is not None and transform.factory:
        raise JobError(
            f"transform.factory: task {task.kind!r} undoes the transform, and what a factory does "
            "to an image is unknown; take a transform.resize"
        )


def _require_axes(task: TaskSpec, model_input: Input) -> None:
    """Refuse outputs of tokens or frames if rows have none."""
    if any(output.is_of_tokens for output in task.outputs) and model_input.text is None:
        raise JobError(f"model.outputs: tokens are of texts; the rows are {model_input.name}")
    if any(output.is_of_frames for output in task.outputs) and model_input.takes != "audio":
        raise JobError(f"model.outputs: frames are of clips; the rows are {model_input.name}")


def _require_writable(generation: Generation, card: ResolvedModel, model_input: Input) -> None:
    """Refuse records that a model cannot write, before it is loaded."""
    assert card.facts is not None, "a directory writes"
    assert card.directory is not None, "likewise"
    Grammar.of(generation, output_tokenizer(local(card.directory), card.facts, model_input))


def _require_several(model: Model) -> None:
    """Refuse models and tasks that cannot have several inputs."""
    if model.path is not None:
        raise JobError(
            f"model.path = {model.path}: a model directory has one input, and an .onnx file with "
            "an input per column takes source.features; source.inputs needs model.factory, a "
            "function that returns a module which takes them by name"
        )
    if model.known_task is not None and task_class(model.known_task).is_per_token:
        raise JobError(
            f"model.task = {model.known_task!r}: has places in one text, and source.inputs are "
            "several inputs"
        )


def _all_of(*steps: Callable[[], Any]) -> list[Any]:
    """Return the results of all steps.

    Raises:
        JobError: Some steps raised JobError; joins their messages.
    """
    results, problems = [], []
    for step in steps:
        try:
            results.append(step())
        except JobError as error:
            problems.append(error)
    if len(problems) > 1:
        raise JobError("; ".join(map(str, problems)))
    if problems:
        raise problems[0]
    return results


def _weights_uri(card: ResolvedModel, model: Model) -> str | None:
    uri = model.weights or card.weights_path
    if uri is None and card.origin == "torchvision":
        raise JobError(
            f"model.weights: {card.name} needs the URI of a state dict "
            f"({', '.join(WEIGHT_SUFFIXES)}); nothing is downloaded silently: "
            f"curl -O {(torchvision_facts(card.name) or {}).get('url')} gets torchvision's own"
        )
    if uri is not None:
        check_suffix(uri)
        if model.weights_key is not None and uri.endswith(".safetensors"):
            raise JobError(
                "model.weights_key: safetensors hold names and tensors only; leave it out"
            )
    return uri


def _choose_input(
    card: ResolvedModel, job: Job, allow_import: Sequence[str]
) -> tuple[Input, TransformSpec | None]:
    """Return the input, and the transform of its images; None if it has none."""
    name, parts = job.source.input_name, job.source.input_parts
    taken = {get(INPUTS, input_name).takes for input_name in parts.values() or (name,)}
    for section, given in (("transform", job.transform), ("text", job.text), ("audio", job.audio)):
        if section not in taken and given.model_fields_set:
            field = sorted(given.model_fields_set)[0]
            where = f"inputs {', '.join(parts)}" if parts else f"input {name!r}"
            raise JobError(f"{section}.{field}: has no effect on {where}; leave it out")
    transform = None
    if "transform" in taken:
        transform = choose_transform(
            card.name,
            card.transform,
            job.transform,
            card.transform_problem,
            allow_import,
            job.source.max_image_px,
        )
        require_image_fits(card.name, card.images, transform)
    column = job.source.text_column
    if job.text.windows and job.source.text_pair_column is not None:
        raise JobError("text.windows: cuts single texts; leave out source.text_pair_column")
    text = choose_text(card, job.model, job.text, column) if "text" in taken else None
    audio = None
    if "audio" in taken:
        declared = card.facts.audio if card.facts else None
        has_parts = not (job.model.generate.stop or job.model.generate.schema_)
        audio = choose_audio(card.name, job.audio, declared, has_parts=has_parts)
    columns, num_features = (
        (card.facts.columns, card.facts.num_features) if card.facts else ((), None)
    )
    settings = InputSettings(transform, text, parts, columns, audio, num_features)
    with extension_errors(INPUTS, name):
        model_input = get(INPUTS, name).of(settings)
        require_stage_names(model_input)
    return model_input, transform


def choose_audio(
    name: str, wanted: Audio, declared: AudioSettings | None, *, has_parts: bool = True
) -> AudioSettings:
    """Choose sample rate and longest clip.

    Args:
        declared: What the model directory says; None for a model without one.
        has_parts: Whether an output may consist of those of several windows.

    Raises:
        JobError: There is no rate, or the model hears another one, or shorter clips.
    """
    if declared is None:
        if wanted.sample_rate_hz is None:
            raise JobError(
                f"audio.sample_rate_hz: {name} names no sample rate; give the samples per second "
                "that it takes"
            )
        return AudioSettings(wanted.sample_rate_hz, wanted.max_s or USUAL_MAX_S)
    if wanted.sample_rate_hz not in (None, declared.sample_rate_hz):
        raise JobError(
            f"audio.sample_rate_hz = {wanted.sample_rate_hz}: {name} takes "
            f"{declared.sample_rate_hz}; leave it out: clips are resampled"
        )
    window_s, why = declared.window_s, ""
    if window_s is not None and not has_parts:
        why = " with generate.stop or generate.schema"
        declared = replace(declared, max_s=window_s, window_s=None)
    is_long = wanted.max_s is not None and wanted.max_s > declared.max_s
    if is_long and declared.has_one_shape:
        raise JobError(
            f"audio.max_s = {wanted.max_s:g}: {name} takes {declared.max_s:g} s at most{why}"
        )
    max_s = wanted.max_s or declared.max_s
    is_windowed = declared.window_s is not None and max_s > declared.window_s
    return replace(declared, max_s=max_s, window_s=declared.window_s if is_windowed else None)


def require_stage_names(model_input: Input) -> None:
    """Refuse an installed input whose stages have names of figures."""
    for stage in model_input.stage_names:
        if stage in FIGURE_NAMES:
            raise JobError(
                f"input {model_input.name!r}: its stage {stage!r} has the name of a figure; its "
                f"distribution must call it otherwise than {', '.join(sorted(FIGURE_NAMES))}"
            )
