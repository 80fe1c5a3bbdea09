"""Small tokenizers: WordPiece over letters and a few words, byte-level BPE."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.preprocessing.texts.text_settings import TextSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("the", "a", "cat", "dog", "sat", "on", "mat", "ran", "fast", "slow", "red", "blue"),
    *("green", "one", "two", "three", "and", "or", "not"),
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-'"
NUM_TOKENS = len(SPECIAL) + len(WORDS) + 2 * len(LETTERS)


def token_id(word: str) -> int:
    """Return the number of one of the words."""
    return len(SPECIAL) + WORDS.index(word)


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer as BERT has it, with `NUM_TOKENS` entries."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = [*SPECIAL, *WORDS, *(c for c in LETTERS if c not in WORDS)]
    names += [f"##{letter}" for letter in LETTERS]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def byte_level(texts: Sequence[str], special: Sequence[str], size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer as GPT-2 has it, trained on texts, of so many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def text_settings(folder: Path, max_tokens: int = 16, **more: object) -> TextSettings:
    """Save a tokenizer below a folder, and return settings that name it."""
    path = folder / "tokenizer.json"
    make_tokenizer().save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    names = ("input_ids", "attention_mask", "token_type_ids")
    return TextSettings(str(path), digest, max_tokens, tensor_names=names, **more)
