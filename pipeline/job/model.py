"""The job file's section `model`: which model predicts, and how it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline.core import registry
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
"""Runtime or precision: the run measures, and takes the fastest that agrees."""


_OF_WEIGHTS = ("weights", "weights_key", "weights_sha256")
_NEEDS = {
    "args": "factory",
    "postprocess_args": "postprocess",
    "weights_key": "weights",
    "pooling": "path",
}
"""Field -> the field without which it has no effect."""


Scores = Literal["logits", "probabilities", "softmax", "sigmoid"] | None


class Output(Section):
    """One output of a model for task `raw`."""

    name: str = Field(default="output", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Its column."""
    shape: tuple[PositiveInt, ...]
    """Its shape for one row; `[]` is one number."""


class Message(Section):
    """A message of a chat, for tasks `choices` and `generate`."""

    role: Literal["system", "user", "assistant"]
    """Whose it is."""
    content: str
    """What it says; one message of all has `{text}`, where the text of a row goes, or `<image>`,
    where its image goes."""


class Generate(Section):
    """How task `generate` writes texts."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 128
    """The most tokens of an output, with those that end it; left out, no more than the decoder has
    places. A prompt that leaves no room for so many is quarantined as `input_too_long`."""
    language: str | None = None
    """Of a model that translates into several: the language of its outputs, as its tokenizer names
    it (`deu_Latn` of NLLB, `de` of M2M100, `de_DE` of mBART-50). Left out: that of the directory's
    `generation_config.json`."""
    stop: tuple[str, ...] = ()
    """Texts that end an output where the first of them comes; they are no part of it."""
    invalid: Literal["keep", "quarantine"] = "keep"
    """What becomes of an output that has `max_new_tokens` without an end, or no text: `keep` writes
    it with its `finish_reason`; `quarantine` has reasons `output_truncated`, `empty_output`. With
    `schema` a row without a record is always in quarantine."""
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
    """URI of a model directory: a Hugging Face snapshot, a sentence-transformers or a timm
    directory, or one `.onnx` file. Transform, tokenizer, labels, pooling, dimension and task come
    from it; nothing in it is executed."""
    name: str | None = None
    """An installed entry point of group `pipeline.models`, or a torchvision model name."""
    factory: str | None = None
    """`package.module:callable` returning an `nn.Module`; its prefix must be allowed."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of `factory`, by name: numbers, text, true and false, lists, mappings."""
    weights: str | None = None
    """URI of a state dict: `.safetensors`, or `.pt`/`.pth` loaded with weights_only; [these
    lines](#torchvision) fetch one of torchvision's."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected digest of the weights file; another digest is refused."""
    weights_key: str | None = None
    """Key of the weights file under which the state dict lies, as in a checkpoint that holds more:
    `model`, or `state.model` further down. What fits is named if it is missing."""
    labels: Texts | None = None
    """Class names: a list, or the URI of a text file with one a line or of a JSON list."""
    task: str | None = None
    """What to make of the outputs: `classify` gives label, score and the top k; `embed` one
    vector; `regress` one number a target; `raw` the outputs as they are. Installed packages may add
    tasks (entry points `pipeline.tasks`). Left out: what the model directory says, otherwise
    `classify`."""
    top_k: PositiveInt = 5
    """Task `classify`: how many classes `top_k` lists (fewer if the model has fewer)."""
    layer: str | None = None
    """The submodule whose output is taken instead of the model's, as `named_modules` calls it."""
    embedding_dim: PositiveInt | None = None
    """Task `embed`: length of the vector; left out: what the model gives for a row."""
    embedding_type: Literal["float32", "float16"] = "float32"
    """Task `embed`: type of the numbers that are written. A number beyond float16 (65,504) makes
    its row `non_finite`."""
    l2_norm: bool = False
    """Task `embed`: scale each vector to length 1."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Task `multilabel`: labels of at least this probability are written. Task `detect`:
    detections of at least this score."""
    scores: Scores = None
    """Tasks `classify`, `multilabel`, `zero_shot`: what the outputs are, and what makes scores of
    them. `logits`: the usual function of the task and the model, softmax or sigmoid;
    `probabilities`: they are scores already; `softmax`, `sigmoid`: this function. Left out: what
    the library or the `.onnx` file says, otherwise logits."""
    max_detections: PositiveInt = 100
    """Task `detect`: the most detections of an image, the best first."""
    nms_iou: Annotated[float, Field(gt=0, le=1)] | None = None
    """Task `detect`: of boxes of one label of which each overlaps the other by more than this share
    of their union, the best is kept (non-maximum suppression). Left out: all are, as the model
    itself has done it."""
    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"
    """Task `tokens`: how tokens become entities. `none`: each token is one; `simple`: neighbours of
    one label; `first`, `average`, `max`: the same with one label for a word, which is that of its
    first token, of the mean of its tokens' scores, or of its token with the highest score."""
    prompts: TextsByName = ()
    """Task `zero_shot`: a text for each label, or a mapping of label to text. For an NLI model the
    text is the hypothesis, such as `This example is about sport.`"""
    choices: TextsByName = ()
    """Task `choices`: the answers, or a mapping of label to answer. A score is the softmax of the
    mean log-likelihood of an answer's tokens after the prompt."""
    prompt: str | None = None
    """Task `choices`: what the model continues with an answer, with `{text}` where the text of a
    row goes, as in `Review: {text}\\nSentiment:`. Task `generate`: what it continues or answers;
    left out: the text alone. For clips and images it is what the model begins with, without
    `{text}`; LLaVA, Idefics3 and SmolVLM need `<image>` in it."""
    messages: tuple[Message, ...] = ()
    """Tasks `choices`, `generate`: the same as messages, `{role, content}` each, which the chat
    template of the model directory writes, stripped if it strips texts. Over images only for models
    that need `<image>`."""
    generate: Generate = Generate()
    """Task `generate`: how texts are written."""
    prior_corrected: bool = False
    """Task `choices`: take the mean log-likelihood that an answer has after an empty text off its
    own, so that an answer that is likely anyway has no advantage."""
    targets: tuple[str, ...] = ()
    """Task `regress`: a column name for each number; left out: one column `value`."""
    outputs: tuple[Output, ...] = ()
    """Task `raw`: the outputs to keep, in the model's order or by its names."""
    postprocess: str | None = None
    """Task `raw`: `package.module:callable` whose result turns outputs into declared columns. Task
    `detect`: its result turns outputs into boxes, scores and label ids."""
    postprocess_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of `postprocess`, by name, as those of `factory`."""
    runtime: str | None = None
    """What runs the model: torch as it is (`eager`), torch.compile (`compile`; on a GPU
    `compile-quick` leaves out its autotuning, which takes minutes), or the library of that name
    (its extra must be installed): `onnxruntime`, `openvino`, `mnn`. `auto` measures what is there
    and takes the fastest that agrees. Left out: `eager`; if `precision` is left out, too, the
    fastest at fp32 that is known to agree on this machine, and `eager` while none is."""
    pooling: str | None = None
    """A model directory that embeds: what becomes of the vectors of a row's tokens or patches:
    `mean`, `cls`, `max`, `lasttoken`, `weightedmean`, `mean_sqrt_len_tokens`, of images also
    `pooler`. Left out: what the directory says; otherwise `mean` of texts, and of images `cls` if
    the model was trained with a class token, `pooler` if it has one, or `mean`; `plan` says
    which."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = "fp32"
    """Arithmetic of the model; scores are always float32. `tf32` and `fp16` need a GPU. A row
    whose output `bf16` or `fp16` cannot hold is `non_finite`. `int8` is for onnxruntime and
    openvino on the CPU, calibrated on rows of the job and used only if it agrees. `auto` measures,
    as above."""
    batch_size: PositiveInt | None = None
    """Rows of one model call; left out: 32 on CPU, 128 on GPU, or with `auto` what `pipeline tune`
    found. Out of memory halves it. Texts: the most rows; left out: 256. Features that are no lists:
    left out 2,048 on CPU, 16,384 on GPU, fewer if that is more than 16 MiB. Clips and images to
    which a model writes: left out 16 on CPU, 32 on GPU."""
    batch_tokens: PositiveInt | None = None
    """Texts: tokens of one model call, padding included; rows are sorted by length within a slice,
    and batches filled up to this. Left out: 1,024 on CPU, 65,536 on GPU, or with `auto` what
    `pipeline tune` found. Out of memory halves it."""
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
        """Return the task; None if the model directory says it."""
        return self.task or (None if self.path else "classify")

    @property
    def is_pinned(self) -> bool:
        """Tell whether the job says a runtime or a precision."""
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
                problems.append(f"{field} has no effect with path: weights are in the directory")
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
        """Yield what of this section does not fit a task."""
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
                    f"leave it out{otherwise}"
                )
        yield from task_class.problems(self)
