"""The facts of a model directory as plain data: format, input, tasks, labels, transform, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipeline.core.printable import clean_message
from pipeline.models.generate.spec import Rules, Transcription
from pipeline.models.outputs import OutputSpec
from pipeline.models.tasks.base import Head
from pipeline.preprocessing.audio.audio_settings import AudioSettings
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import TensorColumn
from pipeline.preprocessing.texts.text_settings import Prompt

DirectoryFormat = Literal["transformers", "sentence_transformers", "timm", "onnx"]
TOWERS = "towers"
"""Head of a model with a tower for images and one for texts; a job uses one of them."""
RAW = "raw"
"""Head of a class of which all outputs are read as they are."""
SPARSE = "sparse"
"""Head of a masked language model whose logits become weights of tokens, as SPLADE's do."""
PROMPTED = "prompted"
"""Head of a detector that finds what texts name."""
MULTI_VECTOR = "multi_vector"
"""Head of an encoder of which a vector of each token is kept, as ColBERT's are."""
FLOATS = ("float32", "float16", "float64")
Axis = int | str | None
"""Length of an axis of a tensor; the name of a dynamic one; None: dynamic without a name."""
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Modes of pooling of sentence-transformers: how the vectors of tokens become one."""
STATIC = "StaticEmbedding"
"""Head, and class in sentence-transformers, of a model that is a vector for each token."""
CTC = "ctc"
"""Head of a model that gives a token for each frame of a clip."""
CLIPS = ("input_values", "input_features")
"""Names that classes of transformers have for clips of sound."""


@dataclass(frozen=True)
class TextFacts:
    """How a text becomes the model's tensors."""

    tokenizer: str
    """Name of the tokenizer file in the directory."""
    max_tokens: int
    """Tokens that the model takes at most, special tokens included."""
    prefix: str
    """Put before each text: the default prompt; '' for none."""
    pad_id: int
    """Token id that fills up a batch, on the right."""
    tensor_names: tuple[str, ...]
    """The tensors that the module takes, by name."""
    shares_places: bool = False
    """Whether `max_tokens` includes the tokens that the model writes."""
    cuts_start: bool = False
    """Whether a longer text loses its start instead of its end."""
    types_alone: bool = False
    """Whether single texts need their token types."""
    overlay: str = ""
    """JSON of sections by which the library replaces those of the tokenizer file; '': none."""
    prompt: Prompt | None = None
    """The chat template around each text, without a prefix then; an empty one if texts have no
    special tokens."""


@dataclass(frozen=True)
class GenerationFacts:
    """How a language model writes a text."""

    rules: Rules
    most_places: int | None
    """Tokens that a decoder beside an encoder has positions for; None: it names no limit."""
    problem: str
    """Why task `generate` is refused; '' if it is not."""
    note: str
    """One line for `pipeline plan`."""
    tokenizer: str = ""
    """Tokenizer file of the tokens that it writes, if it reads no text."""
    writes_windows: bool = False
    """Whether the library writes longer clips in windows, and with times."""
    image_mark: str = ""
    """The token that stands for the image in a prompt; '': it takes no prompt with an image."""
    image_px: int | None = None
    """The side of the image."""


class ImageContract(NamedTuple):
    """Channels and size of the images that a model takes; None: it names none."""

    num_channels: int | None = None
    height_px: int | None = None
    width_px: int | None = None


class Layer(NamedTuple):
    """A module of sentence-transformers before or behind the pooling."""

    name: Literal["dense", "layer_norm", "normalize", "truncate"]
    in_features: int
    out_features: int
    at: str = ""
    """Folder of its weights, if it has any: '' or a path ending in `/`."""
    bias: bool = True
    activation: str = "Identity"
    """Name of a module of torch.nn."""
    residual: bool = False
    """Whether its input is added to its output."""


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text or an image become one."""

    modes: tuple[str, ...]
    """Vectors of several modes are concatenated. The job may name another one."""
    known: tuple[str, ...]
    """Modes that the job may name."""
    include_prompt: bool = True
    prompt_tokens: int = 0
    """Tokens of the prompt to leave out; 0: none."""
    token_layers: tuple[Layer, ...] = ()
    """Applied to the vectors of tokens."""
    layers: tuple[Layer, ...] = ()
    """Applied to the vector of the text."""
    skipped_ids: tuple[int, ...] = ()
    """Tokens whose vectors task `multi_vector` leaves out."""


@dataclass(frozen=True)
class LibraryClass:
    """A class of the installed transformers."""

    at: str
    """Folder of config and weights: '' or a path ending in `/`."""
    built: str
    """The class that is built."""
    head: str
    """`sequence`, `token`, `image`, `audio`, `detection`, `none`, `CTC`, `MULTI_VECTOR`,
    `PROMPTED`, `RAW`, `SPARSE`, `STATIC`, `TOWERS` or one of `WRITERS`."""
    absent: tuple[str, ...] = ()
    """Tensors that no file has, and no prediction reads."""


@dataclass(frozen=True)
class TimmModel:
    """A model of the installed timm."""

    architecture: str


class TensorFacts(NamedTuple):
    """An input or an output of the file."""

    name: str
    dtype: str
    """Name in numpy; `text` for strings; the type in onnxruntime if it is not a tensor."""
    shape: tuple[Axis, ...] | None
    """None: the file does not give it."""

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if a is None else str(a)
                                                        for a in self.shape)  # fmt: skip
        return f"{clean_message(self.name, 80)!r} {self.dtype} ({axes})"


def fixed(shape: Sequence[Axis] | None, axis: int) -> int | None:
    """Return the length of an axis; None if it is dynamic."""
    length = None if shape is None or axis >= len(shape) else shape[axis]
    return length if isinstance(length, int) else None


@dataclass(frozen=True)
class OnnxFile:
    """An .onnx file."""

    inputs: tuple[TensorFacts, ...]
    output_names: tuple[str, ...]
    output: str
    """The output for tasks that take one."""
    zipped: tuple[str, ...]
    """Outputs that are read without their ZipMap."""
    layout: str | None
    """Order of the axes of images: NCHW or NHWC; None: it takes no images."""
    batch_size: int | None
    """The only number of rows that it takes; None: any."""
    max_tokens: int | None
    """The only length of texts that it takes; None: any."""
    has_columns: bool
    """Whether each input is a column of a table."""
    no_boxes: str = ""
    """What the outputs are, if task `detect` cannot read them and that is known."""


@dataclass(frozen=True)
class DirectoryFacts:
    """The facts of a directory; can be pickled."""

    format_name: DirectoryFormat
    architecture: str
    """The class, or timm's name, of the installed library."""
    input: str
    """The registered name of the input that it takes."""
    tasks: tuple[str, ...]
    """The tasks that the outputs serve; the first is the default."""
    module: LibraryClass | TimmModel | OnnxFile
    """Source of the module."""
    labels: tuple[str, ...] | None = None
    embedding_dim: int | None = None
    transform: TransformSpec | None = None
    transform_problem: str = ""
    """Why there is no transform."""
    images: ImageContract = field(default_factory=ImageContract)
    text: TextFacts | None = None
    prompt_text: TextFacts | None = None
    """How prompts of labels become tensors, if the rows are not texts."""
    audio: AudioSettings | None = None
    pooling: Pooling | None = None
    activation: str = "identity"
    """Function that task `score` applies to an output."""
    generation: GenerationFacts | None = None
    """How it writes, if it does."""
    transcription: Transcription | None = None
    """How its frames become texts, if they do."""
    scores: str | None = None
    """`sigmoid` if scores of prompts are sigmoids; None: the default of the task."""
    ends_in: str | None = None
    """`softmax`, `sigmoid` or `probabilities` if the outputs are known probabilities."""
    quantised: str = ""
    """What quantised the weights, which engine vllm alone reads; '': nothing."""
    head: Head = ""
    """How the output of a detector of ultralytics has boxes."""
    outputs: tuple[OutputSpec, ...] = ()
    """Outputs of a class with the head RAW."""
    notes: tuple[str, ...] = ()
    """Lines for `pipeline plan`: a file and what was read from it."""

    @property
    def columns(self) -> tuple[TensorColumn, ...]:
        """Return the columns that an .onnx file takes by their names; () if it takes a vector."""
        if not isinstance(self.module, OnnxFile) or not self.module.has_columns:
            return ()
        return tuple(TensorColumn(tensor.name, tensor.dtype) for tensor in self.module.inputs)

    @property
    def num_features(self) -> int | None:
        """Return the length of the vector that an .onnx file takes; None if it is unknown."""
        if not isinstance(self.module, OnnxFile) or self.input != "features" or self.columns:
            return None
        shape = self.module.inputs[0].shape
        width = shape[1] if shape and len(shape) > 1 else None
        return width if isinstance(width, int) else None
