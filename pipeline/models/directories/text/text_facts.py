"""How a directory wants its texts tokenised: tokenizer, limit, pad id, prompt, tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import DirectoryFacts, TextFacts
from pipeline.models.directories.json_files import check_size, read_object, read_value
from pipeline.models.directories.text.tokenizer_config import require_agreement
from pipeline.preprocessing.model_input import Input
from pipeline.preprocessing.texts.prompts import PromptTokenizer, prompt_tokenizer
from pipeline.preprocessing.texts.text_settings import Prompt
from pipeline.preprocessing.texts.tokenizer import parse_tokenizer, tokenizer_errors
from pipeline.process.confined import ConfinedError, confined

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
_COUNT = "pipeline.models.directories.text.text_facts:count_tokens"
TENSORS = ("input_ids", "attention_mask", "token_type_ids")
"""What a model may take of a text."""
_DEFAULT_TOKENS = 512
"""For a model and a tokenizer that both name no limit."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`.

    Raises:
        JobError: The file is too large, or damaged.
    """
    check_size(TOKENIZER, path.stat().st_size, path.name)
    return parse_tokenizer(f"model.path: {path.name}", path.read_bytes())


def output_tokenizer(path: Path, facts: DirectoryFacts, model_input: Input) -> PromptTokenizer:
    """Return the tokenizer of what a language model writes.

    Args:
        path: The directory.
        facts: Of it.
        model_input: What the model sees of a row.

    Raises:
        JobError: It cannot be read.
    """
    if model_input.text is not None:
        return prompt_tokenizer(model_input.text)
    assert facts.generation is not None, "the directory writes"
    return PromptTokenizer(load_tokenizer(path / facts.generation.tokenizer), Prompt("", ""))


def prompt_tokens(path: Path, prompt: str) -> int:
    """Return how many tokens a prompt takes at the start of a text, special tokens included.

    In a confined process, for a pattern of the tokenizer may never end.

    Raises:
        JobError: The tokenizer fails over it, or takes too long.
    """
    try:
        return int(confined(_COUNT, str(path), prompt, reads=[path], imports=("tokenizers",)))
    except ConfinedError as error:
        raise JobError(f"model.path: {path.name} fails over the prompt: {error}") from None


def count_tokens(path: str, prompt: str) -> int:
    """Return how many tokens a prompt takes at the start of a text; see `prompt_tokens`."""
    tokenizer = load_tokenizer(Path(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode(prompt)
    # Without the special token that closes a text.
    return len(encoding.ids) - (encoding.special_tokens_mask[-1:] == [1])


def text_facts(
    folder: Path,
    module: torch.nn.Module | None,
    *,
    at: str = "",
    max_seq_length: int | None = None,
    prefix: str = "",
    lowercase: bool = False,
) -> TextFacts:
    """Read how texts become tensors.

    Args:
        folder: The directory.
        module: The library's model, whose tensors may mean nothing; None: it is unknown.
        at: Where the tokenizer lies: '' or a folder of the directory, ending in `/`.
        max_seq_length: A limit that another file sets.
        prefix: The prompt before each text.
        lowercase: Another file says that texts are lowercased.

    Raises:
        JobError: A file is missing or damaged.
    """
    config: Any = module.config if module is not None else None
    settings = read_object(folder, at + CONFIG, optional=True)
    tokenizer = load_tokenizer(folder / (at + TOKENIZER))
    with tokenizer_errors(f"model.path: {at}{TOKENIZER}: its normaliser fails"):
        keeps_case = lowercase and _keeps_case(tokenizer)
        require_agreement(settings, getattr(config, "model_type", ""), tokenizer, at)
    if keeps_case:
        raise JobError(
            "model.path: sentence_bert_config.json says do_lower_case, and tokenizer.json keeps "
            "capitals; put the normalizer Lowercase into it with the tokenizers library"
        )
    limits = [
        max_seq_length or read_value(settings, "model_max_length", at + CONFIG, int, ge=1),
        None if module is None else max_positions(module),
    ]
    return TextFacts(
        tokenizer=at + TOKENIZER,
        max_tokens=min((limit for limit in limits if limit), default=_DEFAULT_TOKENS),
        prefix=prefix,
        pad_id=_pad_id(folder, at, settings, tokenizer, module),
        tensor_names=TENSORS if module is None else tensor_names(module),
        cuts_start=_cuts_start(settings, tokenizer),
    )


def _cuts_start(settings: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    default_side = (tokenizer.truncation or {}).get("direction")
    return str(settings.get("truncation_side") or default_side).lower() == "left"


def max_positions(module: torch.nn.Module) -> int | None:
    """Return how many tokens the model has positions for; None: it names no limit."""
    import torch

    for name, part in module.named_modules():
        if name.endswith(("position_embeddings", "position_embedding")) and isinstance(
            part, torch.nn.Embedding
        ):
            # RoBERTa and its kin count from behind the padding index.
            skipped = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - skipped
    limit = getattr(_text_config(module), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def tensor_names(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the tensors that the model takes of a text; type ids only if it has several types."""
    taken = inspect.signature(module.forward).parameters
    types = getattr(_text_config(module), "type_vocab_size", 0) or 0
    return TENSORS if "token_type_ids" in taken and types > 1 else TENSORS[:2]


def _text_config(module: Any) -> Any:
    config = getattr(module, "config", None)
    return getattr(config, "text_config", config)


def _keeps_case(tokenizer: Tokenizer) -> bool:
    normalizer = tokenizer.normalizer
    return normalizer is None or normalizer.normalize_str("A") == "A"


def _pad_id(
    folder: Path, at: str, settings: Mapping[str, Any], tokenizer: Tokenizer, module: Any
) -> int:
    special = read_object(folder, at + SPECIAL, optional=True)
    for values in (settings, special):
        token = values.get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        pad_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if pad_id is not None:
            return int(pad_id)
    pad_id = getattr(_text_config(module), "pad_token_id", None)
    return pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0
