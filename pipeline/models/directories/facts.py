"""What a model directory says of itself: kind, input, tasks, labels, transform, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import TensorColumn

DirectoryKind = Literal["transformers", "sentence_transformers", "timm", "onnx"]
InputKind = Literal["text", "image", "features"]


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


@dataclass(frozen=True)
class DirectoryFacts:
    """What a directory says; for JSON, and can be pickled."""

    kind: DirectoryKind
    architecture: str
    """The class, or timm's name, of the installed library."""
    input: InputKind
    tasks: tuple[str, ...]
    """The tasks that the outputs serve; the first is the default."""
    labels: tuple[str, ...] | None
    transform: TransformSpec | None
    text: TextFacts | None
    embedding_dim: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the builder needs besides, as JSON; see the kinds' own files."""
    said: tuple[str, ...] = ()
    """What was read, and from which file, a line each."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = asdict(replace(self, transform=None))
        return {**values, "transform": self.transform and self.transform.to_dict()}

    @property
    def columns(self) -> tuple[TensorColumn, ...]:
        """Return the columns that an .onnx file takes by their names; () if it takes a vector."""
        return tuple(TensorColumn(*each) for each in self.settings.get("columns", ()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DirectoryFacts:
        """Return the facts that `to_dict` described, also after a round trip through JSON."""
        labels, transform, text = values["labels"], values["transform"], values["text"]
        changed = {
            "tasks": tuple(values["tasks"]),
            "labels": None if labels is None else tuple(labels),
            "transform": transform and TransformSpec.from_dict(transform),
            "text": text and TextFacts(**{**text, "tensor_names": tuple(text["tensor_names"])}),
            "said": tuple(values["said"]),
        }
        return cls(**{**values, **changed})
