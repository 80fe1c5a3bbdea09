"""What decides how a text becomes tokens: the tokenizer's file and its limits, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

IDS, MASK, TYPES = TENSORS = ("input_ids", "attention_mask", "token_type_ids")
"""What a model may take of a text."""


@dataclass(frozen=True)
class Prompt:
    """What stands around the text of a row, for a model that continues it."""

    before: str
    after: str
    adds_special: bool = True
    """Whether the tokenizer adds its special tokens: a chat template has written them itself."""
    strips: Literal["", "both", "left", "right"] = ""
    """Ends at which a text loses its white space, as chat templates that strip a message have it;
    of a blank text what stands before (`right`) or behind it (`left`) loses its own."""
    is_open: bool = False
    """Whether control tokens in the text of a row count as such, as encoders have it."""

    def around(self, text: str) -> str:
        """Return the prompt of a text."""
        before, text, after = self.before, self.stripped(text), self.after
        if not text:
            before = before.rstrip() if self.strips == "right" else before
            after = after.lstrip() if self.strips == "left" else after
        return f"{before}{text}{after}"

    def stripped(self, text: str) -> str:
        """Return what of a text is in its prompt."""
        text = text.lstrip() if self.strips in ("both", "left") else text
        return text.rstrip() if self.strips in ("both", "right") else text

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the tokens, as JSON values, for fingerprints."""
        values = asdict(self)
        return {k: v for k, v in values.items() if v or k not in ("strips", "is_open")}


@dataclass(frozen=True)
class TextSettings:
    """How texts become tokens; for JSON, and can be pickled."""

    tokenizer_uri: str
    """Where its tokenizer.json is; workers copy it into the node cache."""
    tokenizer_sha256: str
    max_tokens: int
    """A longer row is cut to this, with its special tokens, and marked as truncated."""
    prefix: str = ""
    """Put before each text, as some encoders were trained."""
    pad_id: int = 0
    tensor_names: tuple[str, ...] = (IDS, MASK)
    """What the model takes of `TENSORS`."""
    has_pair: bool = False
    """Whether a row is a pair of texts."""
    types_alone: bool = False
    """Whether rows of one text have token types, too: the model does not take zeros without."""
    has_offsets: bool = False
    """Whether the places of tokens in the text are kept, for entities."""
    prompt: Prompt | None = None
    """What stands around each text; a longer row is cut at the end of the text."""
    new_tokens: int = 0
    """The most tokens that the model writes for a row: then a longer prompt is refused, as each has
    a place for them behind it. 0: it writes none."""
    cuts_start: bool = False
    """Whether a longer row loses the start of a text, not its end."""
    overlay: str = ""
    """JSON of the sections of tokenizer.json in whose place the model's library has others; '':
    none."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_types(self) -> bool:
        """Tell whether tokens have types."""
        return self.has_pair or self.types_alone

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the tokens, as JSON values, for fingerprints."""
        overlay_sha256 = hashlib.sha256(self.overlay.encode()).hexdigest()
        return {
            "tokenizer_sha256": self.tokenizer_sha256,
            **({"overlay_sha256": overlay_sha256} if self.overlay else {}),
            "max_tokens": self.max_tokens,
            "prefix": self.prefix,
            "pad_id": self.pad_id,
            "tensor_names": list(self.tensor_names),
            "has_pair": self.has_pair,
            **({"types_alone": True} if self.types_alone else {}),
            **({"prompt": self.prompt.to_dict()} if self.prompt else {}),
            **({"new_tokens": self.new_tokens} if self.new_tokens else {}),
            **({"cuts_start": True} if self.cuts_start else {}),
        }
