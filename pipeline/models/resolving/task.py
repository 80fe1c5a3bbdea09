"""Choose the task of a job: its labels and settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.registry import TASKS
from pipeline.core.user_code import extension_errors, require_allowed, source_digest
from pipeline.models.directories.facts import RAW, DirectoryFacts, GenerationFacts
from pipeline.models.directories.opening import require_served
from pipeline.models.directories.snapshot import ModelDirectory, local
from pipeline.models.directories.text.image_prompts import image_prompt
from pipeline.models.directories.text.tokens import load_tokenizer
from pipeline.models.generate.grammar import require_grammars
from pipeline.models.generate.schema import SchemaError, canonical
from pipeline.models.generate.spec import Generation, Rules
from pipeline.models.outputs import FRAMES, TOKENS, OutputSpec
from pipeline.models.resolving.named_model import ResolvedModel
from pipeline.models.tasks import task_class
from pipeline.models.tasks.base import Head, TaskSpec
from pipeline.models.tasks.classify import PLACE
from pipeline.models.tasks.scores import choose_scores
from pipeline.preprocessing.texts.tokenizer import tokenizer_errors
from pipeline.storage.store import read_file

if TYPE_CHECKING:
    from pipeline.job.model import Model, Output


_OF_HEADS: Mapping[str, Mapping[str, Any]] = {
    "places": {"min_score": 0.25, "max_detections": 300, "nms_iou": 0.7},
    "rows": {"min_score": 0.25, "max_detections": 300},
}
"""What ultralytics takes unless it is told otherwise."""
_LANGUAGE = re.compile(r"[a-z]{2,3}(_[A-Za-z]{2,4})?|__[a-z]{2,3}__")
"""Tokens of languages: `deu_Latn`, `de_DE`, `__de__`."""
_SHOWN_LANGUAGES = 4
_AXES = {"tokens": TOKENS, "frames": FRAMES}


def task_name(model: Model, card: ResolvedModel) -> str:
    """Return the job's task, otherwise what the model directory serves first."""
    return model.known_task or (card.facts.tasks[0] if card.facts else "classify")


def choose_task(model: Model, card: ResolvedModel, allow_import: Sequence[str]) -> TaskSpec:
    """Choose the task of a model, with its labels.

    Args:
        allow_import: Prefixes of modules that `postprocess` may name, beside the environment's.

    Raises:
        JobError: The model does not serve the task, or there are no labels for it.
    """
    name, facts = task_name(model, card), card.facts
    task = task_class(name)
    is_detector = facts is not None and require_served(name, facts) == "detect"
    head: Head = facts.head if facts and is_detector and model.postprocess is None else ""
    of_head = {
        field: value for field, value in _OF_HEADS.get(head, {}).items()
        if field not in model.model_fields_set
    }  # fmt: skip
    with extension_errors(TASKS, name):
        labels = task.job_labels(model)
    if is_detector or name == "detect":
        _require_prompts(model, card)
    if task.needs_labels and not labels:
        names = card.labels if model.labels is None else _read_labels(model, model.labels)
        if not names:
            served = facts.tasks if facts is not None else ()
            others = [other for other in served if not task_class(other).needs_labels]
            way = f", or another model.task: {', '.join(others)}" if others else ""
            raise JobError(
                f"model.labels: {card.name} brings no class names; give a list or a file{way}"
            )
        labels = tuple(names)
        if facts is not None and facts.labels and len(labels) != len(facts.labels):
            raise JobError(
                f"model.labels: has {len(labels)} names, and {facts.architecture} of model.path "
                f"has {len(facts.labels)} labels; give as many, or leave model.labels out"
            )
    length = facts and not model.layer and not model.pooling and facts.embedding_dim
    dim = model.embedding_dim or (facts and facts.embedding_dim) or 0
    if length and dim > length:
        raise JobError(
            f"model.embedding_dim = {dim}: {card.name} gives {length} numbers; leave it out, or "
            "give less to have the first of them alone"
        )
    is_cut = bool(length and dim < length)
    outputs = tuple(map(_output, model.outputs))
    if name == RAW and not outputs:
        outputs = facts.outputs if facts is not None else ()
        if not outputs:
            raise JobError(
                f"model.outputs: {card.name} says none of one shape for all rows; give each a name "
                "and a shape, or make them of one shape in a module of model.factory"
            )
    code = ""
    if model.postprocess is not None:
        require_allowed("model.postprocess", model.postprocess, allow_import)
        code = source_digest("model.postprocess", model.postprocess)
    spec = TaskSpec(
        kind=name,
        labels=labels,
        top_k=min(model.top_k, len(labels)) if labels else 0,
        embedding_dim=dim,
        model_dim=(length or 0) if is_cut else 0,
        # A part of a vector of length 1 is shorter.
        l2_norm=model.l2_norm or (is_cut and facts is not None and _is_normalised(facts)),
        outputs=outputs,
        targets=model.targets,
        postprocess=model.postprocess,
        postprocess_sha256=code,
        min_score=model.min_score,
        embedding_type=model.embedding_type,
        activation=facts.activation if facts else "identity",
        aggregation=model.aggregation,
        prompts=prompt_texts(model.prompts or model.choices),
        prior_corrected=model.prior_corrected,
        generation=_choose_generation(model, card),
        postprocess_args=model.postprocess_args,
        max_detections=model.max_detections,
        nms_iou=model.nms_iou,
        head=head,
        scores=choose_scores(model, card, task),
        transcription=facts.transcription if facts else None,
    )
    return replace(spec, **of_head)


def _require_prompts(model: Model, card: ResolvedModel) -> None:
    """Refuse prompts of a detector that takes none, and a detector without its prompts."""
    takes = card.facts is not None and card.facts.prompt_text is not None
    if takes and not model.prompts:
        raise JobError(
            f"model.prompts: {card.name} finds what texts name: give a text for each label"
        )
    if model.prompts and not takes:
        raise JobError(f"model.prompts: {card.name} finds labels of its own; leave it out")


def _choose_generation(model: Model, card: ResolvedModel) -> Generation | None:
    """Return how a job writes texts; None if its task writes none."""
    name = task_name(model, card)
    most = task_class(name).new_tokens(model)
    if not most:
        return None
    facts = card.facts.generation if card.facts else None
    if facts is None:
        raise JobError(f"model.task = {name!r}: {card.name} writes no texts; give a language model")
    if facts.problem:
        raise JobError(facts.problem)
    rules = facts.rules
    if facts.tokenizer and card.directory is not None:
        rules = _with_prompt(model, facts, card.directory)
    rules = _in_language(rules, model, card)
    if facts.most_places is not None:
        left = facts.most_places - len(rules.start) - bool(rules.languages)
        if left > 0 and "max_new_tokens" not in model.generate.model_fields_set:
            # A window of fast speech has more tokens than other texts; the library takes all.
            most = left if facts.writes_windows else min(most, left)
        if most > left:
            raise JobError(
                f"model.generate.max_new_tokens = {most}: {card.name} writes {left} tokens at most"
            )
    schema = record_schema(model)
    section = model.generate
    if section.timestamps and not facts.writes_windows:
        raise JobError(f"model.generate.timestamps: {card.name} writes no times; leave it out")
    drawn = (section.temperature, section.top_p, section.seed)
    return Generation(
        most, section.stop, section.invalid, schema, rules, *drawn, section.timestamps
    )


def _with_prompt(model: Model, facts: GenerationFacts, directory: ModelDirectory) -> Rules:
    """Return the rules of a model that reads no text, begun with the job's prompt if it has one.

    Raises:
        JobError: It has messages and there is no place for an image, or a place for a text.
    """
    if model.prompt is None and not model.messages and not facts.image_mark:
        return facts.rules
    texts = [model.prompt or "", *(message.content for message in model.messages)]
    if any(PLACE in text for text in texts):
        field = "messages" if model.messages else "prompt"
        raise JobError(f"model.{field}: the model reads no text, so that {PLACE} has no effect")
    if facts.image_mark:
        messages = [(message.role, message.content) for message in model.messages]
        start = image_prompt(directory, texts[0], messages, facts.image_mark)
        return replace(facts.rules, start=start)
    if model.messages:
        raise JobError("model.messages: the model reads no text; give model.prompt instead")
    tokenizer = load_tokenizer(local(directory) / facts.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with tokenizer_errors("model.prompt: the tokenizer fails over it"):
        ids = tokenizer.encode(texts[0], add_special_tokens=False).ids
    if not ids:
        raise JobError("model.prompt: has no tokens; leave it out")
    added = tokenizer.get_added_tokens_decoder().get(ids[0])
    first = facts.rules.start[:1]
    if ids[:1] == [*first] or (added is not None and added.special):
        first = ()  # the prompt alone begins the output
    return replace(facts.rules, start=(*first, *ids), languages=())


def _in_language(rules: Rules, model: Model, card: ResolvedModel) -> Rules:
    """Return rules by which outputs are in the job's language.

    As in the library its token is forced behind the first one of the decoder, or is the first if
    the directory has a language there.

    Raises:
        JobError: The model has no token of it, or takes none.
    """
    wanted, text = model.generate.language, card.facts.text if card.facts else None
    if wanted is None:
        return rules
    field = f"model.generate.language = {wanted!r}"
    if text is None or not rules.start or card.directory is None:
        raise JobError(
            f"{field}: has no effect on {card.name}, which is told its language by the prompt; "
            "write it into model.prompt"
        )
    tokenizer = load_tokenizer(local(card.directory) / text.tokenizer)
    added = tokenizer.get_added_tokens_decoder().items()
    languages = {
        token.content.strip("_"): number
        for number, token in added
        if token.special and _LANGUAGE.fullmatch(token.content)
    }
    number = languages.get(wanted.strip("_"))
    if number is None:
        some = ", ".join([*languages][:_SHOWN_LANGUAGES])
        right = f"expected one of {len(languages)} such as {some}" if some else "leave it out"
        raise JobError(f"{field}: the tokenizer of {card.name} has no such language; {right}")
    if rules.start[0] in languages.values():
        return replace(rules, start=(number, *rules.start[1:]))
    return replace(rules, first=number)


def record_schema(model: Model) -> str:
    """Return the canonical schema of a job's records; '' if it has none.

    Raises:
        JobError: It cannot be read, or is not in the subset.
    """
    given, field = model.generate.schema_, "model.generate.schema"
    if given is None:
        return ""
    require_grammars()
    if isinstance(given, str):
        field = f"{field} = {given}"
        data = read_file(given, model.storage_options, "model.generate.schema")
        try:
            given = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise JobError(f"{field}: is no JSON: {clean_message(str(error), 200)}") from None
    try:
        return canonical(given)
    except SchemaError as error:
        raise JobError(f"{field}: {error}") from None


def prompt_texts(prompts: tuple[str, ...] | dict[str, str]) -> tuple[str, ...]:
    """Return the prompts without their labels."""
    return tuple(prompts.values()) if isinstance(prompts, dict) else prompts


def _read_labels(model: Model, labels: str | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(labels, str):
        return labels
    data = read_file(labels, model.storage_options, "model.labels")
    try:
        text = data.decode("utf-8-sig")
        if not labels.endswith(".json"):
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        names = json.loads(text)
    except ValueError as error:
        raise JobError(f"model.labels = {labels}: cannot be read: {error}") from None
    if not (isinstance(names, list) and all(isinstance(item, str) for item in names)):
        raise JobError(f"model.labels = {labels}: expected a JSON list of strings")
    return tuple(names)


def _is_normalised(facts: DirectoryFacts) -> bool:
    """Tell whether the vectors of a directory have length 1."""
    layers = facts.pooling.layers if facts.pooling else ()
    return any(layer.name == "normalize" for layer in layers)


def _output(output: Output) -> OutputSpec:
    if any(isinstance(size, str) for size in output.shape[1:]):
        raise JobError(f"model.outputs: {output.name}: only the first axis may be tokens or frames")
    sizes = (size if isinstance(size, int) else _AXES[size] for size in output.shape)
    return OutputSpec(output.name, tuple(sizes))
