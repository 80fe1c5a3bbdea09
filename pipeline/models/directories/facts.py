"""What a model directory says of itself: kind, input, tasks, labels, transform, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipeline.core.printable import clean_message
from pipeline.models.generate.spec import Rules
from pipeline.preprocessing.audio.audio_settings import AudioSettings
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import TensorColumn
from pipeline.preprocessing.texts.text_settings import Prompt

DirectoryFormat = Literal["transformers", "sentence_transformers", "timm", "onnx"]
TOWERS = "towers"
"""Head of a model of images and texts, of which a job takes one side."""
FLOATS = ("float32", "float16", "float64")
Axis = int | str | None
"""Of a tensor: its length; the name of a dynamic one; None: dynamic without a name."""
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""How the vectors of tokens can become one: the modes of sentence-transformers."""
CLIPS = ("input_values", "input_features")
"""What classes of transformers call clips of sound."""


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
    """Whether what the model writes counts for `max_tokens`, too."""
    cuts_start: bool = False
    """Whether a longer text loses its start, not its end."""
    types_alone: bool = False
    """Whether single texts need their token types; otherwise they are as good as none."""
    overlay: str = ""
    """JSON of what the library puts in the place of sections of the tokenizer file; '': nothing."""
    prompt: Prompt | None = None
    """The chat template around each text; there is no prefix then."""


@dataclass(frozen=True)
class GenerationFacts:
    """How a language model writes a text."""

    rules: Rules
    most_places: int | None
    """Tokens that a decoder beside an encoder has positions for; None: it names no limit."""
    problem: str
    """Why task `generate` is refused; '': it is not."""
    note: str
    """What `pipeline plan` says of it."""
    tokenizer: str = ""
    """Of a model that reads no text: name of the tokenizer file whose tokens it writes."""
    image_mark: str = ""
    """The token that stands for the image in a prompt; '': none does, and there may be no
    prompt."""
    image_px: int | None = None
    """The side of the image."""


class ImageContract(NamedTuple):
    """What a model says of the images that it takes; None: nothing."""

    num_channels: int | None = None
    height_px: int | None = None
    width_px: int | None = None


class Layer(NamedTuple):
    """A module of sentence-transformers before or behind the pooling."""

    name: Literal["dense", "layer_norm", "normalize", "truncate"]
    in_features: int
    out_features: int
    at: str = ""
    """Where its weights lie, if it has some: '' or a folder ending in `/`."""
    bias: bool = True
    activation: str = "Identity"
    """Name of a module of torch.nn."""
    residual: bool = False
    """Whether its input is added to its output."""


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text or an image become one."""

    modes: tuple[str, ...]
    """Several are put together. The job may name another one."""
    known: tuple[str, ...]
    """What the job may name."""
    include_prompt: bool = True
    prompt_tokens: int = 0
    """Tokens of the prompt, which are left out; 0: none are."""
    token_layers: tuple[Layer, ...] = ()
    """Applied to the vectors of tokens."""
    layers: tuple[Layer, ...] = ()
    """Applied to the vector of the text."""


@dataclass(frozen=True)
class LibraryClass:
    """A class of the installed transformers."""

    at: str
    """Where config and weights lie: '' or a folder ending in `/`."""
    built: str
    """The class that is built."""
    head: str
    """`sequence`, `token`, `image`, `audio`, `detection`, `none`, `TOWERS` or one of `WRITERS`."""
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
    """As numpy names it; of texts `text`; of what is no tensor its type in onnxruntime."""
    shape: tuple[Axis, ...] | None
    """None: the file does not say it."""

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
    """The output that tasks take, if they do not take all."""
    zipped: tuple[str, ...]
    """Outputs that are read without their ZipMap."""
    layout: str | None
    """Of images, the order of the axes: NCHW or NHWC."""
    batch_size: int | None
    """The only number of rows that it takes; None: any."""
    max_tokens: int | None
    """The only length of texts that it takes; None: any."""
    has_columns: bool
    """Whether each input is a column of a table."""


@dataclass(frozen=True)
class DirectoryFacts:
    """What a directory says; can be pickled."""

    format_name: DirectoryFormat
    architecture: str
    """The class, or timm's name, of the installed library."""
    input: str
    """The registered name of the input that it takes."""
    tasks: tuple[str, ...]
    """The tasks that the outputs serve; the first is the default."""
    module: LibraryClass | TimmModel | OnnxFile
    """What the module is built from."""
    labels: tuple[str, ...] | None = None
    embedding_dim: int | None = None
    transform: TransformSpec | None = None
    transform_problem: str = ""
    """Why there is no transform."""
    images: ImageContract = field(default_factory=ImageContract)
    text: TextFacts | None = None
    prompt_text: TextFacts | None = None
    """How prompts of zero_shot become tensors, if the rows are no texts."""
    audio: AudioSettings | None = None
    pooling: Pooling | None = None
    activation: str = "identity"
    """What task `score` applies to an output."""
    generation: GenerationFacts | None = None
    """Of a model that writes."""
    scores: str | None = None
    """`sigmoid` if scores of prompts are; None: as the task says."""
    ends_in: str | None = None
    """`softmax`, `sigmoid` or `probabilities` if the outputs are known to be probabilities."""
    notes: tuple[str, ...] = ()
    """What was read, and from which file, a line each."""

    @property
    def columns(self) -> tuple[TensorColumn, ...]:
        """Return the columns that an .onnx file takes by their names; () if it takes a vector."""
        if not isinstance(self.module, OnnxFile) or not self.module.has_columns:
            return ()
        return tuple(TensorColumn(tensor.name, tensor.dtype) for tensor in self.module.inputs)

    @property
    def num_features(self) -> int | None:
        """Return how many numbers an .onnx file takes as one vector; None if it does not say."""
        if not isinstance(self.module, OnnxFile) or self.input != "features" or self.columns:
            return None
        shape = self.module.inputs[0].shape
        width = shape[1] if shape and len(shape) > 1 else None
        return width if isinstance(width, int) else None
