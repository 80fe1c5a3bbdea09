"""Choose how rows become the model's input: transform, tokens, sample rate.

The model's own settings count unless the job has others. The job's prompt, or its messages by the
chat template, stands around the text of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.failures import TRANSFORM_FACTORY
from pipeline.core.printable import num_of
from pipeline.core.user_code import require_allowed, source_digest
from pipeline.job.prompt_places import TEXT_NAME, parts_of
from pipeline.job.transform import Text, Windows
from pipeline.models.directories.facts import ImageContract, TextFacts
from pipeline.models.directories.text.chat_template import chat_prompt
from pipeline.models.directories.text.tokens import hypotheses
from pipeline.models.resolving.named_model import ResolvedModel
from pipeline.models.resolving.task import prompt_texts, task_name
from pipeline.models.tasks import task_class
from pipeline.models.tasks.base import Task
from pipeline.models.tasks.classify import PLACE
from pipeline.preprocessing.images.geometry import least_made_px, most_made_px
from pipeline.preprocessing.images.own_transform import check_factory
from pipeline.preprocessing.images.transform import CHANNELS, ONLY_WITH, TransformSpec, sides
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.text_settings import (
    TENSORS,
    Prompt,
    TextSettings,
    WindowSettings,
)
from pipeline.preprocessing.texts.tokenizer import (
    pad_id_of,
    parse_tokenizer,
    read_tokenizer_bytes,
    special_around,
    tokenizer_errors,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.job.model import Model
    from pipeline.job.transform import Transform

_PROMPT_TOKENS = 4_096
"""The most tokens of a prompt unless the job says another number: models take up to millions."""
_OF_FACTORIES = ("size_px", "mean", "std")
"""Fields of the model's transform that a factory keeps."""
_NEEDED = ("size_px", "resize_px", "interpolation", "mean", "std")


def choose_text(
    card: ResolvedModel, model: Model, wanted: Text, column: str | None = None
) -> TextSettings:
    """Choose the tokenizer and its limits.

    Args:
        model: The job's section of it, whose prompts and output must fit beside a text.
        column: That of the texts; None if there are several inputs.

    Raises:
        JobError: There is no tokenizer or limit, or they cannot be used.
    """
    name, facts = card.name, card.facts.text if card.facts else None
    task = task_class(task_name(model, card))
    prompt = _prompt(model, card, task_name(model, card), wanted, column)
    frame = facts.prompt if facts and prompt is None else None
    if facts:
        _require_usable(facts, model, wanted)
    of_file = facts if facts and not wanted.tokenizer else None
    new_tokens, storage_options = task.new_tokens(model), model.storage_options
    # A model with labels of its own reads prompts as hypotheses behind the text.
    behind = prompt_texts(model.prompts) if card.facts and card.facts.labels else ()
    uri = wanted.tokenizer
    if not uri and facts and card.directory:
        uri = f"{card.directory.root}/{facts.tokenizer}"
    if not uri:
        if card.transform is not None:
            raise JobError(f"{name} takes images, and the job has texts (source.text_column)")
        raise JobError(
            f"text.tokenizer: {name} brings no tokenizer; give the URI of a tokenizer.json"
        )
    data = read_tokenizer_bytes(uri, storage_options)
    overlay = of_file.overlay if of_file else ""
    tokenizer = parse_tokenizer(f"text.tokenizer = {uri}", data, overlay)
    with tokenizer_errors(f"text.tokenizer = {uri}: fails over texts"):
        pairs = hypotheses(tokenizer, behind)
        reserved = max((len(pair.ids) for pair in pairs), default=0)
        least = tokenizer.num_special_tokens_to_add(is_pair=True) + 2
        if frame is not None:
            least = PromptTokenizer(tokenizer, frame).num_fixed + 1
        if prompt is not None:
            prompts = PromptTokenizer(tokenizer, prompt)
            reserved += max(map(len, prompts.answers(prompt_texts(model.choices))), default=0)
            least = prompts.num_fixed + 1
    if facts and facts.shares_places:
        reserved += new_tokens
        if new_tokens and facts.max_tokens - reserved < least:
            raise JobError(
                f"model.generate.max_new_tokens = {new_tokens}: leaves no room for a text; {name} "
                f"takes {facts.max_tokens} tokens, {least} or more of them before the output"
            )
    most = _max_tokens(name, wanted, facts, reserved, _PROMPT_TOKENS if prompt else None)
    _require_cuttable(wanted, task, task_name(model, card), column, is_framed=bool(frame))
    if most < least:
        raise JobError(
            f"{_limit_field(wanted)} = {most}: leaves no room for a text beside "
            f"{'the prompt' if prompt else 'special tokens'}; give {least} or more"
        )
    return TextSettings(
        tokenizer_uri=uri,
        tokenizer_sha256=hashlib.sha256(data).hexdigest(),
        max_tokens=most,
        prefix=wanted.prefix if wanted.prefix is not None else (facts.prefix if facts else ""),
        pad_id=facts.pad_id if facts else pad_id_of(tokenizer),
        tensor_names=facts.tensor_names if facts else TENSORS,
        types_alone=bool(facts and facts.types_alone),
        has_offsets=task.needs_places(model) and not (prompt or frame),
        prompt=prompt or frame,
        new_tokens=new_tokens,
        cuts_start=bool(of_file and of_file.cuts_start and prompt is None),
        windows=_windows(wanted.windows, tokenizer) if wanted.windows else None,
        overlay=overlay,
        storage_options=storage_options,
    )


def _require_usable(facts: TextFacts, model: Model, wanted: Text) -> None:
    """Refuse fields that do not go with token types of all texts, or with a chat template."""
    if facts.types_alone and model.prompts:
        raise JobError(
            f"model.prompts: {model.path} adds token types to all tokens, and prompts have none; "
            "take token_type_ids out of model_input_names of tokenizer_config.json"
        )
    for field, given in (("prefix", wanted.prefix), ("tokenizer", wanted.tokenizer)):
        if given and facts.prompt is not None and facts.prompt.text:
            raise JobError(
                f"text.{field}: has no effect beside the chat template that {model.path} writes "
                "texts by; leave it out"
            )


def _windows(wanted: Windows, tokenizer: Tokenizer) -> WindowSettings:
    """Return how texts are cut, with the special tokens of the tokenizer around each window."""
    before, after = map(len, special_around(tokenizer))
    least = before + after + wanted.overlap + 1
    if wanted.tokens < least:
        raise JobError(
            f"text.windows.tokens = {wanted.tokens}: leaves no room beside {before + after} "
            f"special tokens and overlap = {wanted.overlap}; give {least} or more"
        )
    return WindowSettings(wanted.overlap, before, after)


def _require_cuttable(
    wanted: Text, task: type[Task], task_name: str, column: str | None, *, is_framed: bool
) -> None:
    """Refuse windows that have no meaning for the job."""
    if wanted.windows is None:
        return
    if not task.takes_windows:
        names = "embed, classify, multilabel or tokens"
        raise JobError(
            f"text.windows: task {task_name!r} takes none; leave it out, or take {names}"
        )
    if column is None:
        raise JobError("text.windows: cuts texts of source.text_column, not of source.inputs")
    if is_framed:
        raise JobError(
            "text.windows: cuts neither inside the model's chat template nor for static "
            "embeddings; leave it out"
        )
    if wanted.max_tokens is not None:
        raise JobError("text.max_tokens: has no effect beside text.windows.tokens; leave it out")


def _limit_field(wanted: Text) -> str:
    return "text.windows.tokens" if wanted.windows else "text.max_tokens"


def _max_tokens(
    name: str, wanted: Text, facts: TextFacts | None, reserved: int, usual: int | None
) -> int:
    free = facts.max_tokens - reserved if facts else None
    given = wanted.windows.tokens if wanted.windows else wanted.max_tokens
    most = given or (min(free, usual) if free and usual else free)
    if most is None:
        raise JobError(
            f"text.max_tokens: {name} names no limit; give the largest number of tokens of a row"
        )
    if free is not None and most > free:
        raise JobError(f"{_limit_field(wanted)} = {most}: {name} takes {free} at most")
    return most


def _prompt(
    model: Model, card: ResolvedModel, task: str, text: Text, column: str | None
) -> Prompt | None:
    """Return the prompt of a job's task; None if it needs none.

    Raises:
        JobError: The model is no directory, or its chat template fails.
    """
    writes = bool(task_class(task).new_tokens(model))
    if model.prompt is None and not model.messages and not writes:
        return None
    if card.directory is None:
        raise JobError(f"model.task = {task!r}: needs model.path, and the model is {card.name}")
    given, field = [PLACE if model.prompt is None else model.prompt], "prompt"
    if model.messages:
        given, field = [message.content for message in model.messages], "messages"
    if not any(parts_of(prompt)[1:] for prompt in given):
        raise JobError(f"model.{field}: must have {PLACE} once, where the text of a row goes")
    if text.prefix:
        raise JobError("text.prefix: has no effect beside a prompt; write it into the prompt")
    if model.messages:
        messages = [(message.role, message.content) for message in model.messages]
        prompt = chat_prompt(card.directory, messages)
    else:
        parts = parts_of(model.prompt or PLACE)
        # The answer of a choice begins with its own space.
        after = parts[-1] if writes else parts[-1].rstrip(" ")
        middles, names = (*parts[2:-1:2],), (*parts[1::2],)
        prompt = Prompt(parts[0], after, middles=middles, columns=names)
    columns = tuple("" if name in (TEXT_NAME, column) else name for name in prompt.columns)
    return replace(prompt, columns=columns if any(columns) or columns[1:] else ())


def choose_transform(
    name: str,
    known: Mapping[str, Any] | None,
    wanted: Transform,
    problem: str = "",
    allow_import: Sequence[str] = (),
    max_image_px: int | None = None,
) -> TransformSpec:
    """Return the transform of a job.

    Args:
        name: The model, for messages.
        known: Fields of a TransformSpec that the model brings.
        wanted: The job's section; its fields win.
        problem: Why the model brings no others.
        allow_import: Prefixes of modules that `factory` may name.
        max_image_px: How many pixels an image may decode to; None: any number.

    Raises:
        JobError: Fields are missing, have no effect, or do not fit together; the factory is not
            allowed, or cannot be called; every image would be made larger than one may be.
    """
    spec = _chosen(name, known or {}, wanted, problem, allow_import)
    if max_image_px is not None and least_made_px(spec) > (most := most_made_px(max_image_px)):
        raise JobError(
            f"transform: {name} would get images of {least_made_px(spec)} px at least (size_px "
            f"{_shown(spec.size_px)}, resize_px {_shown(spec.resize_px)}), allowed are {most} "
            "(source.max_image_px)"
        )
    return spec


def _chosen(
    name: str,
    base: Mapping[str, Any],
    wanted: Transform,
    problem: str,
    allow_import: Sequence[str],
) -> TransformSpec:
    given = wanted.model_dump(exclude_defaults=True)
    if wanted.factory is not None:
        return _by_factory(name, wanted.factory, base, given, allow_import)
    resize = str(given.get("resize") or base.get("resize", "shortest"))
    for field, resizes in ONLY_WITH.items():
        if given.get(field) and resize not in resizes:
            raise JobError(
                f"transform.{field}: has no effect with resize {resize!r} of {name}; leave it out"
            )
    base = _still_valid(base, given, resize)
    if "size_px" in given and "resize_px" not in given and "resize_px" in base:
        # Keep the model's ratio of resize to crop.
        given["resize_px"] = _in_ratio(given["size_px"], base["size_px"], base["resize_px"])
    merged = {**base, **given}
    needed = [field for field in _NEEDED if resize in ONLY_WITH.get(field, (resize,))]
    if resize != "shortest" and "resize_px" in needed:
        needed.remove("resize_px")
    if resize == "none":
        needed.remove("size_px")
        merged.setdefault("size_px", None)
    missing = [field for field in needed if field not in merged]
    if missing:
        why = f" ({problem})" if problem else ""
        raise JobError(f"transform: {name} brings no transform{why}; give {', '.join(missing)}")
    return _made(merged)


def _made(fields: Mapping[str, Any]) -> TransformSpec:
    try:
        return TransformSpec.from_dict(fields)
    except ValueError as error:
        raise JobError(f"transform: {error}") from None


def _by_factory(
    name: str,
    factory: str,
    base: Mapping[str, Any],
    given: Mapping[str, Any],
    allow_import: Sequence[str],
) -> TransformSpec:
    """Return the transform of a job with a factory."""
    require_allowed(TRANSFORM_FACTORY, factory, allow_import)
    check_factory(factory, given.get("args", {}))
    code = source_digest(TRANSFORM_FACTORY, factory)
    kept = {key: base[key] for key in _OF_FACTORIES if key in base}
    merged = {"size_px": None, **kept, **given, "code_sha256": code}
    missing = [field for field in ("mean", "std") if field not in merged]
    if missing:
        raise JobError(
            f"transform: {name} brings no mean and std; give {', '.join(missing)}, one value for "
            "each channel that the factory returns"
        )
    return _made(merged)


def _still_valid(base: Mapping[str, Any], given: Mapping[str, Any], resize: str) -> dict[str, Any]:
    """Return the model's fields that still hold if the job changes the resize or the channels."""
    gone = {field for field, resizes in ONLY_WITH.items() if resize not in resizes}
    gets_size = base.get("size_px") is None and "size_px" in given
    if resize != base.get("resize", "shortest") or gets_size:
        gone.add("resize_px")
    channels = given.get("channels")
    if channels and len(base.get("mean", ())) != CHANNELS[channels]:
        gone |= {"mean", "std", "pad_value"}
    return {key: value for key, value in base.items() if key not in gone}


def _in_ratio(size: Any, old_size: Any, old_resize: Any) -> Any:
    if isinstance(size, int) and isinstance(old_size, int) and isinstance(old_resize, int):
        return round(size * old_resize / old_size)
    if isinstance(old_resize, int):
        return round(max(_pair(size)) * old_resize / max(_pair(old_size)))
    ratios = zip(_pair(size), _pair(old_size), _pair(old_resize), strict=True)
    return [round(side * resize / old) for side, old, resize in ratios]


def _shown(size: Any) -> str:
    return "none" if size is None else " x ".join(map(str, _pair(size)))


def _pair(size: Any) -> tuple[int, int]:
    return sides(tuple(size) if isinstance(size, list) else size)


def require_image_fits(name: str, taken: ImageContract, transform: TransformSpec) -> None:
    """Refuse a transform whose images the model does not take.

    Raises:
        JobError: They differ; the message has both numbers.
    """
    if problem := image_misfit(taken, transform):
        raise JobError(f"model: {name} takes {problem}")


def image_misfit(taken: ImageContract, transform: TransformSpec) -> str:
    """Describe how a transform does not fit a model; '' if it does."""
    count = transform.num_channels
    if taken.num_channels not in (None, count):
        channels = num_of(taken.num_channels or 0, "channel")
        names = [name for name, number in CHANNELS.items() if number == taken.num_channels]
        way = f"set transform.channels: {names[0]}" if names else "an image has 3, or 1 of gray"
        return f"{channels}, transform gives {count}: {way}"
    taken_px = taken.height_px, taken.width_px
    if not transform.has_one_size:
        if taken_px == (None, None):
            return ""
        height, width = ("any" if side is None else side for side in taken_px)
        size = height if height == width else [height, width]
        return (
            f"images of {height} x {width} px (height x width), and images keep their sizes: set "
            f"transform.size_px: {size}"
        )
    given = transform.height_px, transform.width_px
    wanted = tuple(
        have if want is None else want for have, want in zip(given, taken_px, strict=True)
    )
    if wanted == given:
        return ""
    size = wanted[0] if wanted[0] == wanted[1] else [*wanted]
    return (
        f"images of {wanted[0]} x {wanted[1]} px (height x width), transform gives {given[0]} x "
        f"{given[1]}: set transform.size_px: {size}"
    )
