"""Settings by which a text becomes tokens: the tokenizer's file, the prompt and limits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

IDS, MASK, TYPES = TENSORS = ("input_ids", "attention_mask", "token_type_ids")
"""Names of the tensors that a model may take."""


@dataclass(frozen=True)
class Prompt:
    """The text before and after the text of a row, for a model that continues it."""

    before: str
    after: str
    adds_special: bool = True
    """Whether the tokenizer adds its special tokens; a chat template writes them itself."""
    strips: Literal["", "both", "left", "right"] = ""
    """Ends at which a text is stripped of white space, as some chat templates do. For a blank text,
    `right` also strips the part before it, and `left` the part after it."""
    is_open: bool = False
    """Whether control tokens in the text of a row take effect, as in encoders."""
    middles: tuple[str, ...] = ()
    """What stands between the texts of several columns."""
    columns: tuple[str, ...] = ()
    """Their names in order, '' for the text of a row; () for that alone."""

    @property
    def text(self) -> str:
        """Return all that it writes around the texts of a row."""
        return "".join((self.before, *self.middles, self.after))

    def around(self, *texts: str) -> str:
        """Return the prompt with the texts of a row."""
        before, text, after = self.before, "".join(self.segments(texts)), self.after
        if not text:
            before = before.rstrip() if self.strips == "right" else before
            after = after.lstrip() if self.strips == "left" else after
        return f"{before}{text}{after}"

    def segments(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of a row with what stands between them, stripped as a whole."""
        segments = [texts[0]]
        for middle, text in zip(self.middles, texts[1:], strict=True):
            segments += [middle, text]
        for side, strip, step in (("left", str.lstrip, 1), ("right", str.rstrip, -1)):
            for place in range(len(segments))[::step] if self.strips in ("both", side) else ():
                segments[place] = strip(segments[place])
                if segments[place]:
                    break
        return segments

    def to_dict(self) -> dict[str, Any]:
        """Return all settings that decide the tokens as JSON values, for fingerprints."""
        values = asdict(self)
        kept = ("before", "after", "adds_special")
        return {k: v for k, v in values.items() if v or k in kept}


@dataclass(frozen=True)
class WindowSettings:
    """How a text longer than `TextSettings.max_tokens` is cut."""

    overlap: int
    """Tokens of the text that a window has in common with the next."""
    before: int
    """Special tokens before a text, and before each window."""
    after: int


@dataclass(frozen=True)
class TextSettings:
    """How texts become tokens; becomes JSON, and can be pickled."""

    tokenizer_uri: str
    """URI of the tokenizer.json; workers copy it into the node cache."""
    tokenizer_sha256: str
    max_tokens: int
    """A longer row is cut to this length, special tokens included, and marked as truncated."""
    prefix: str = ""
    """Prepended to each text, as in the training of some encoders."""
    pad_id: int = 0
    tensor_names: tuple[str, ...] = (IDS, MASK)
    """The tensors that the model takes, some of `TENSORS`."""
    has_pair: bool = False
    """Whether a row is a pair of texts."""
    types_alone: bool = False
    """Whether rows of one text have token types, too, as the model requires them."""
    has_offsets: bool = False
    """Whether the offsets of tokens in the text are kept, for entities."""
    prompt: Prompt | None = None
    """The prompt around each text and its prefix; a longer row is cut at the end of its text."""
    new_tokens: int = 0
    """The most tokens that the model writes for a row; a prompt without room for them is refused.
    0: it writes none."""
    cuts_start: bool = False
    """Whether a longer row loses the start of its text instead of the end."""
    windows: WindowSettings | None = None
    """How a longer row is cut into windows of `max_tokens`; None: it is cut to this length."""
    overlay: str = ""
    """JSON of sections that replace those of tokenizer.json; '' for none."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_types(self) -> bool:
        """Tell whether tokens have types."""
        return self.has_pair or self.types_alone

    def to_dict(self) -> dict[str, Any]:
        """Return all settings that decide the tokens as JSON values, for fingerprints."""
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
            **({"windows": asdict(self.windows)} if self.windows else {}),
        }
