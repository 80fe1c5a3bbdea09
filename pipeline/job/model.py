"""Section `model` of the job file: which model predicts, and how it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline.core import registry
from pipeline.job.prompt_places import parts_of
from pipeline.job.registered import registered
from pipeline.job.section import (
    MAPPING,
    TEXT,
    PositiveInt,
    Section,
    Texts,
    TextsByName,
    by_form,
)

AUTO = "auto"
"""A runtime or precision: the run measures, and takes the fastest that agrees."""


_OF_WEIGHTS = ("weights", "weights_key", "weights_sha256")
_NEEDS = {
    "args": "factory",
    "postprocess_args": "postprocess",
    "weights_key": "weights",
    "pooling": "path",
}
"""Field -> the field that it needs to have an effect."""


Scores = Literal["logits", "probabilities", "softmax", "sigmoid"] | None


class Output(Section):
    """One output of a model for task `raw`."""

    name: str = Field(default="output", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of its column."""
    shape: tuple[PositiveInt | Literal["tokens", "frames"], ...]
    """Shape for one row; `[]` is one number. A first axis of `tokens` has a place for each token of
    a text, one of `frames` a place for each frame that the model makes of a clip."""


class Message(Section):
    """A message of a chat, for tasks `choices` and `generate`."""

    role: Literal["system", "user", "assistant"]
    """Author of the message."""
    content: str
    """Text of the message. One message contains `{text}`, the place of a row's text, or `<image>`,
    the place of its image; other names in braces are columns, as in `prompt`."""


class Generate(Section):
    """How task `generate` writes text."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Most tokens of an output, including those that end it. Limited by the positions of the
    decoder unless set. A prompt that leaves no room for this many is quarantined as
    `input_too_long`."""
    language: str | None = None
    """Target language of a multilingual translation model, as its tokenizer names it (`deu_Latn`
    for NLLB, `de` for M2M100, `de_DE` for mBART-50). Default: the language in the directory's
    `generation_config.json`."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Above 0, tokens are drawn at random, with `seed`, by [engine vllm](vllm.md); the higher, the
    more the texts differ. 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With `temperature`: draw only from the likeliest tokens, whose probabilities add up to
    this."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    """With `temperature`: decides the draws. Rows with the same prompt get the same text."""
    timestamps: bool = False
    """Of Whisper: column `segments` has the parts of the text with `start_s` and `end_s`, in
    seconds of the clip. Clips are written one by one."""
    stop: tuple[str, ...] = ()
    """Texts that end an output where the first of them occurs; they are not part of it."""
    invalid: Literal["keep", "quarantine"] = "keep"
    """Treatment of an output that reaches `max_new_tokens` without an end, or is empty: `keep`
    publishes it with its `finish_reason`; `quarantine` uses the reasons `output_truncated` and
    `empty_output`. With `schema`, a row without a record is always quarantined."""
    schema_: (
        Annotated[
            Annotated[dict[str, JsonValue], MAPPING] | Annotated[str, TEXT],
            by_form("an object or a valid string"),
        ]
        | None
    ) = Field(default=None, alias="schema")
    """Outputs are records of this JSON schema: the schema itself, or the URI of a `.json` file. Its
    properties become typed columns. See [Records](#records-by-a-schema). Needs the extra
    `schema`."""


class Model(Section):
    """Which model predicts, and how."""

    path: str | None = None
    """URI of a model directory (a Hugging Face snapshot, a sentence-transformers or a timm
    directory) or of one `.onnx` file. Transform, tokenizer, labels, pooling, dimension and task
    come from it; nothing in it is executed."""
    name: str | None = None
    """Name of an installed entry point of group `pipeline.models`, or of a torchvision model."""
    factory: str | None = None
    """`package.module:callable` that returns an `nn.Module`; its prefix must be allowed."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of `factory`: numbers, strings, booleans, lists, mappings."""
    weights: str | None = None
    """URI of a state dict: `.safetensors`, or `.pt`/`.pth` loaded with weights_only. [These
    lines](#torchvision) download one of torchvision's."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected digest of the weights file; any other digest is refused."""
    weights_key: str | None = None
    """Key of the state dict in the weights file, for a checkpoint that holds more: `model`, or
    `state.model` for a nested one. If it is missing, the error names the keys that fit."""
    labels: Texts | None = None
    """Class names: a list, or the URI of a text file with one per line or of a JSON list."""
    task: str | None = None
    """Meaning of the outputs: `classify` gives a label, a score and the top k; `embed` a vector;
    `regress` one number per target; `raw` the outputs unchanged. Installed packages may add tasks
    (entry points `pipeline.tasks`). Default: the task of the model directory, otherwise
    `classify`."""
    top_k: PositiveInt = 5
    """Task `classify`: number of classes in `top_k` (fewer if the model has fewer)."""
    layer: str | None = None
    """Submodule whose output replaces that of the model, by its name in `named_modules`."""
    embedding_dim: PositiveInt | None = None
    """Task `embed`: length of the vector. Default: the length of the model's output. Of a model
    directory less may be wanted, as of Matryoshka models: the first numbers are kept, and scaled to
    length 1 if the whole vector was."""
    embedding_type: Literal["float32", "float16"] = "float32"
    """Task `embed`: data type of the published numbers. A number beyond float16 (65,504)
    quarantines its row as `non_finite`."""
    l2_norm: bool = False
    """Task `embed`: scale each vector to length 1."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Task `multilabel`: publish labels with at least this probability. Task `detect`: publish
    detections with at least this score; 0.25 for a YOLO that ultralytics exported."""
    scores: Scores = None
    """Tasks `classify`, `multilabel`, `zero_shot`: what the outputs are, or the function that turns
    them into scores. `logits`: apply the usual function of the task and the model, softmax or
    sigmoid; `probabilities`: use them as scores; `softmax`, `sigmoid`: apply this function.
    Default: what the library or the `.onnx` file specifies, otherwise logits."""
    max_detections: PositiveInt = 100
    """Task `detect`: most detections per image, the best first; 300 for a YOLO of ultralytics."""
    nms_iou: Annotated[float, Field(gt=0, le=1)] | None = None
    """Task `detect`: non-maximum suppression. Of boxes with the same label whose intersection over
    union exceeds this, only the best is kept. Default: none, for models that suppress boxes
    themselves; 0.7 for a YOLO that ultralytics exported without suppression."""
    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"
    """Task `tokens`: how tokens become entities. `none`: each token is an entity; `simple`:
    adjacent tokens with the same label are joined; `first`, `average`, `max`: the same, with one
    label per word, which is that of its first token, of the mean score of its tokens, or of its
    token with the highest score."""
    prompts: TextsByName = ()
    """Task `zero_shot`: one text per label, or a mapping of label to text. For an NLI model the
    text is the hypothesis, such as `This example is about sport.` Task `detect`, for models that
    find what texts name (OWL-ViT, OWLv2, Grounding DINO): the same."""
    choices: TextsByName = ()
    """Task `choices`: the answers, or a mapping of label to answer. The score of an answer is the
    softmax of the mean log-likelihood of its tokens after the prompt."""
    prompt: str | None = None
    """Task `choices`: text that each answer continues, with `{text}` as the place of a row's text,
    such as `Review: {text}\\nSentiment:`, and `{name}` as that of another column of texts; doubled
    braces `{{name}}` are plain text. Task `generate`: text that the model continues or
    answers; default: the row's text. For clips and images, the start of the output, without
    `{text}`; LLaVA, Idefics3 and SmolVLM need `<image>` in it."""
    messages: tuple[Message, ...] = ()
    """Tasks `choices`, `generate`: the prompt as chat messages, each `{role, content}`, formatted
    by the chat template of the model directory, which may strip texts. For images, only with models
    that need `<image>`."""
    generate: Generate = Generate()
    """Task `generate`: how text is written."""
    prior_corrected: bool = False
    """Task `choices`: subtract the mean log-likelihood that an answer has after an empty text, so
    that answers that are likely in general have no advantage."""
    targets: tuple[str, ...] = ()
    """Task `regress`: a column name for each number. Default: one column, `value`."""
    outputs: tuple[Output, ...] = ()
    """Task `raw`: the outputs to keep, in the model's order or by name."""
    postprocess: str | None = None
    """Task `raw`: `package.module:callable` that returns a function from outputs to declared
    columns. Task `detect`: it returns a function from outputs to boxes, scores and label ids."""
    postprocess_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of `postprocess`, as for `factory`."""
    engine: str | None = None
    """Tasks `generate`, `choices`: what schedules and runs the model. `vllm` (extra `vllm`) runs
    directories of models that continue a text, or a prompt with an image, in vLLM, in `precision`
    fp32, bf16 or fp16. See [Engine vllm](vllm.md). Default: the pipeline's own."""
    runtime: str | None = None
    """What runs the model: torch (`eager`), torch.compile (`compile`; on a GPU, `compile-quick`
    skips autotuning, which takes minutes), or a library whose extra is installed: `onnxruntime`,
    `openvino`, `mnn`. `auto` measures all that are installed and takes the fastest that agrees with
    eager fp32. Default: `eager`; if `precision` is not set either, the fastest at fp32 that is
    known to agree on this machine, and `eager` until one is known."""
    pooling: str | None = None
    """For a model directory that embeds: how the vectors of a row's tokens or patches become one:
    `mean`, `cls`, `max`, `lasttoken`, `weightedmean`, `mean_sqrt_len_tokens`, and for images
    `pooler`. Default: what the directory specifies; otherwise `mean` for texts, and for images
    `cls` if the model was trained with a class token, `pooler` if it has one, or `mean`. `plan`
    shows the choice."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = "fp32"
    """Arithmetic of the model; scores are always float32. `tf32` and `fp16` need a GPU. A row whose
    output overflows `bf16` or `fp16` is quarantined as `non_finite`. `int8` is for onnxruntime and
    openvino on the CPU; it is calibrated on rows of the job and used only if it agrees. `auto`
    measures, as for `runtime`."""
    batch_size: PositiveInt | None = None
    """Rows per model call. Default: 32 on CPU, 128 on GPU, or with `auto` the size that `pipeline
    tune` found. If memory runs out, it is halved. Texts: the most rows, default 256. Scalar
    features: default 2,048 on CPU, 16,384 on GPU, or fewer to stay within 16 MiB. Clips and images
    for which a model writes text: default 16 on CPU, 32 on GPU."""
    batch_tokens: PositiveInt | None = None
    """Texts: tokens per model call, including padding; rows are sorted by length within a slice,
    and batches are filled up to this. Default: 1,024 on CPU, 65,536 on GPU, or with `auto` the
    number that `pipeline tune` found. If memory runs out, it is halved."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options for the weights and labels; never written anywhere."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str | None) -> str | None:
        if name is not None:
            registered(registry.TASKS, name)
        return name

    @property
    def known_task(self) -> str | None:
        """Return the task; None if it comes from the model directory."""
        return self.task or (None if self.path else "classify")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Return the names in braces of the prompt and the messages."""
        prompts = [self.prompt or "", *(message.content for message in self.messages)]
        names = [name for prompt in prompts for name in parts_of(prompt)[1::2]]
        return tuple(dict.fromkeys(names))

    @property
    def is_pinned(self) -> bool:
        """Tell whether the job sets a runtime or a precision."""
        return self.runtime is not None or "precision" in self.model_fields_set

    @field_validator("runtime")
    @classmethod
    def _known_runtime(cls, name: str | None) -> str | None:
        if name is not None:
            registered(registry.RUNTIMES, name, (AUTO,))
        return name

    @model_validator(mode="after")
    def _one_model(self) -> Model:
        problems = []
        if [self.path, self.name, self.factory].count(None) != 2:
            problems.append("give exactly one of path, name and factory")
        for field in _OF_WEIGHTS:
            if self.path is not None and getattr(self, field) is not None:
                problems.append(
                    f"{field} has no effect with path: the weights are in the directory"
                )
        problems += [
            f"{field} has no effect without {other}"
            for field, other in _NEEDS.items()
            if getattr(self, field) and getattr(self, other) is None
        ]
        runtime = registered(registry.RUNTIMES, self.runtime or "eager", (AUTO,))
        if self.precision == "int8" and runtime and "int8" not in runtime.precisions:
            able = [name for name in registry.built_in(registry.RUNTIMES)
                    if "int8" in registry.load(registry.RUNTIMES, name).precisions]  # fmt: skip
            problems.append(f"precision 'int8' needs runtime {', '.join(able)} or auto")
        if self.known_task is not None:
            problems += self.problems_of(self.known_task)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def problems_of(self, task: str) -> Iterator[str]:
        """Yield the problems of this section with a task."""
        task_class = registry.load(registry.TASKS, task)
        owners: dict[str, list[str]] = {}
        for owner in registry.built_in(registry.TASKS):
            for field in registry.load(registry.TASKS, owner).job_fields:
                owners.setdefault(field, []).append(repr(owner))
        for field, tasks in owners.items():
            if (
                field in self.model_fields_set
                and getattr(self, field)
                and field not in task_class.job_fields
            ):
                can_be_null = type(self).model_fields[field].default is None
                otherwise = f", or --set model.{field}=null" if can_be_null else ""
                yield (
                    f"{field} has no effect with task {task!r}, only {', '.join(tasks)}: "
                    f"remove it{otherwise}"
                )
        if self.engine not in (None, task_class.engine, *task_class.other_engines):
            engines = ", ".join((task_class.engine, *task_class.other_engines))
            yield f"engine {self.engine!r} does not run task {task!r}, only {engines}"
        if self.engine in task_class.other_engines and self.runtime is not None:
            yield f"runtime has no effect with engine {self.engine!r}"
        yield from task_class.problems(self)
