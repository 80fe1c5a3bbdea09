"""Test that tokens are those of the library, or that the directory is refused.

Each directory is written by the library (`save_pretrained`), then one file is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.models.snapshots import change_json, make_snapshot, write_json, write_model
from support.models.tiny_tokenizer import byte_level
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from pipeline.core.errors import JobError
from pipeline.models.directories.model_class import choose
from pipeline.models.directories.opening import read_facts
from pipeline.models.directories.text.tokens import (
    library_tokens,
    require_tokens,
    settings_of,
    text_facts,
)
from pipeline.preprocessing.texts.tokenizer import tokenise

ROWS = (
    ("Rain in THE City, \u00e9t\u00e9 caf\u00e9 \u4e2d\u6587 and XX dog", "by the river "),
    (" the cat <s> sat [SEP] on </s> the mat\n", " A  dog"),
    ("", "the long way home, the long way home, the long way home by the river query " * 3),
)
Change = Callable[[Path], Any]


def in_config(**changes: Any) -> Change:
    return lambda path: change_json(path / "tokenizer_config.json", **changes)


def in_file(**changes: Any) -> Change:
    return lambda path: change_json(path / "tokenizer.json", **changes)


def in_tokenizer(change: Callable[[Tokenizer], Any]) -> Change:
    """Change what the tokenizers library knows of tokenizer.json."""

    def rewrite(path: Path) -> None:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        change(tokenizer)
        tokenizer.save(str(path / "tokenizer.json"))

    return rewrite


def normalised_by(normalizer: Any) -> Change:
    return in_tokenizer(lambda tokenizer: setattr(tokenizer, "normalizer", normalizer))


def cut_by(pre_tokenizer: Any) -> Change:
    return in_tokenizer(lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizer))


def bert(folder: Path) -> Path:
    """BERT, whose tokenizer class builds its rules anew."""
    path = make_snapshot(folder, "bert", "sequence", num_labels=3)
    change_json(path / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    return path


def as_the_file(folder: Path) -> Path:
    """BERT, whose tokenizer class takes the file as it is."""
    return make_snapshot(folder, "bert", "sequence", num_labels=3)


def with_tokenizer(folder: Path, name: str, tokenizer: Any, **values: Any) -> Path:
    """Write a directory of a class of sequences with a tokenizer of the library."""
    import transformers

    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), intermediate_size=32, pad_token_id=1, **sizes, **values
    )
    write_model(folder, getattr(transformers, f"{name}ForSequenceClassification"), config)
    return folder


def bytes_of(special: Sequence[str]) -> dict[str, Any]:
    """Return vocabulary and merges of a small byte-level BPE."""
    rows = [text for row in ROWS for text in row]
    model = json.loads(byte_level(rows, special, 300).to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def roberta(folder: Path) -> Path:
    from transformers import RobertaTokenizer

    parts = bytes_of(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    tokenizer = RobertaTokenizer(**parts, model_max_length=64)
    return with_tokenizer(folder, "Roberta", tokenizer, max_position_embeddings=66)


def gpt2(folder: Path) -> Path:
    from transformers import GPT2Tokenizer

    parts = bytes_of(("<|endoftext|>",))
    tokenizer = GPT2Tokenizer(**parts, pad_token="<|endoftext|>", model_max_length=64)
    return with_tokenizer(folder, "GPT2", tokenizer, n_positions=64)


def xlm_roberta(folder: Path) -> Path:
    from transformers import XLMRobertaTokenizer

    letters = {*"".join(text for row in ROWS for text in row)} - {" ", "\n"}
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581the", "\u2581dog", *sorted(letters)]
    vocab = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    tokenizer = XLMRobertaTokenizer(vocab=vocab, model_max_length=64)
    return with_tokenizer(folder, "XLMRoberta", tokenizer, max_position_embeddings=66)


LOWER = normalizers.BertNormalizer(lowercase=True)
CASED = normalizers.BertNormalizer(lowercase=False)
MARK = {
    "content": "XX",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}
Odd = tuple[Callable[[Path], Path], Change, str]
ODD: dict[str, Odd] = {
    # what makes the directory, what is changed, what a refusal says; '': it is equal
    "lower case by file alone": (bert, in_config(do_lower_case=False), ""),
    "lower case by settings alone": (bert, normalised_by(CASED), ""),
    "accents kept": (bert, in_config(strip_accents=False), ""),
    "Chinese not cut": (bert, in_config(tokenize_chinese_chars=False), ""),
    "other words": (bert, cut_by(pre_tokenizers.Whitespace()), ""),
    "file as it is": (as_the_file, normalised_by(CASED), ""),
    "no settings": (as_the_file, lambda path: (path / "tokenizer_config.json").unlink(), ""),
    "another cls token": (bert, in_config(cls_token="[MASK]"), ""),
    "more special tokens": (bert, in_config(extra_special_tokens=["XX"]), ""),
    "more special tokens of old": (bert, in_config(additional_special_tokens=["XX"]), ""),
    "token in settings": (bert, in_config(added_tokens_decoder={"77": MARK}), ""),
    "token in a file": (bert, lambda path: write_json(path / "added_tokens.json", {"XX": 96}), ""),
    "special tokens split": (bert, in_config(split_special_tokens=True), "probe 'one"),
    "no such class": (bert, in_config(tokenizer_class="BertTokenizerOfMine"), ""),
    "cut at the start": (bert, in_config(truncation_side="left"), ""),
    "cut at the start by file": (
        bert,
        in_tokenizer(lambda tokenizer: tokenizer.enable_truncation(6, direction="left")),
        "",
    ),
    "padded by file": (bert, in_tokenizer(lambda tokenizer: tokenizer.enable_padding()), ""),
    "limit of old": (as_the_file, in_config(model_max_length=None, max_len=10), ""),
    "limit as a float": (as_the_file, in_config(model_max_length=1e30), ""),
    "damaged file": (bert, in_file(model={"type": "?"}), "makes no tokenizer of"),
    "prefix space by settings": (roberta, in_config(add_prefix_space=True), ""),
    "prefix space by file": (
        roberta,
        cut_by(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "",
    ),
    "no special tokens around": (roberta, in_file(post_processor=None), ""),
    "GPT-2, prefix space": (gpt2, in_config(add_prefix_space=True), ""),
    "Metaspace alone": (xlm_roberta, cut_by(pre_tokenizers.Metaspace()), ""),
}


@pytest.mark.parametrize("name", ODD)
def test_tokens_are_those_of_the_library_or_the_directory_is_refused(name: str, tmp_path: Path):
    make, change, refusal = ODD[name]
    path = make(tmp_path / "model")
    change(path)
    if refusal:
        with pytest.raises(JobError, match=refusal):
            read_facts(path)
        return
    text = read_facts(path).text
    assert text is not None
    tokenizer = AutoTokenizer.from_pretrained(path)
    firsts, seconds = (list(column) for column in zip(*ROWS, strict=True))
    for columns in ((firsts,), (firsts, seconds)):
        ours = tokenise(settings_of(path, text, has_pair=len(columns) == 2), *columns)
        theirs = [
            tokenizer(*row, truncation=True, max_length=text.max_tokens)["input_ids"]
            for row in zip(*columns, strict=True)
        ]
        assert ours.ids.tolist() == [number for ids in theirs for number in ids]


OVERLAID = ("lower case by settings alone", "another cls token", "prefix space by settings")


@pytest.mark.parametrize("name", OVERLAID)
def test_the_probe_alone_refuses_the_file_without_what_the_library_changes(name, tmp_path):
    make, change, _ = ODD[name]
    path = make(tmp_path / "model")
    change(path)
    text = read_facts(path).text
    assert text is not None
    assert text.overlay
    made = library_tokens(path, "")
    with pytest.raises(JobError, match=r"model\.path: probe .*input_ids.* in transformers 5"):
        require_tokens(made, settings_of(path, replace(text, overlay="")))


def test_scores_that_differ_in_their_last_digit_are_the_same_vocabulary(tmp_path: Path):
    path = xlm_roberta(tmp_path / "model")
    model = json.loads((path / "tokenizer.json").read_text())["model"]
    score = -1.7731650854030239
    model["vocab"] = [[piece, score] for piece, _ in model["vocab"]]
    in_file(model=model)(path)
    read = json.loads(Tokenizer.from_file(str(path / "tokenizer.json")).to_str())["model"]
    assert read["vocab"][0][1] != score
    assert read_facts(path).text is not None


def test_another_vocabulary_than_the_librarys_is_refused_with_a_way_out(tmp_path):
    path, module = bert(tmp_path / "model"), choose(gpt2(tmp_path / "other")).module
    made = library_tokens(tmp_path / "other", "")
    with pytest.raises(JobError, match=r"GPT2Tokenizer .* another vocabulary .*save_pretrained"):
        text_facts(path, "", module, made, has_pairs=False)


LISTED = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("make", "listed", "has_types", "alone"),
    [
        (bert, LISTED, True, False),
        (bert, LISTED[::2], False, False),
        (as_the_file, None, False, False),
        (roberta, LISTED, True, False),
        (gpt2, LISTED, True, True),
        (gpt2, LISTED[::2], False, False),
    ],
)
def test_token_types_are_given_where_the_library_gives_them(
    make, listed, has_types, alone, tmp_path
):
    path = make(tmp_path / "model")
    change_json(path / "tokenizer_config.json", model_input_names=listed)
    text = read_facts(path).text
    assert text is not None
    assert ("token_type_ids" in text.tensor_names) == has_types
    assert text.types_alone == alone


@pytest.mark.parametrize(
    ("family", "limit", "most"),
    [("bert", 5, 5), ("bert", 10**30, 64), ("bert", None, 64), ("roberta", None, 64)],
)
def test_a_text_has_at_most_the_tokens_that_tokenizer_and_model_take(family, limit, most, tmp_path):
    path = make_snapshot(tmp_path, family)
    change_json(path / "tokenizer_config.json", model_max_length=limit)
    text = read_facts(path).text
    assert text is not None
    assert text.max_tokens == most, "RoBERTa has 66 positions, the first two for padding"
