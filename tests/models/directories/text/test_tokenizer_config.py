"""`tokenizer_config.json` beside `tokenizer.json`: as the library reads both, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models.snapshots import change_json, make_snapshot
from support.runs.jobs import job_over
from support.runs.selection import quick_cases
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from pipeline.core.errors import JobError
from pipeline.job.model import Model
from pipeline.job.transform import Text
from pipeline.models.directories.opening import read_facts
from pipeline.models.resolving.resolve import resolve_model
from pipeline.preprocessing.texts.tokenizer import tokenise

PROBE = "Rain in THE City, \u00e9t\u00e9 caf\u00e9 \u4e2d\u6587"


def directory(folder: Path, normalizer: Any, **settings: Any) -> Path:
    """Write a directory whose tokenizer.json has a normaliser and whose settings say something."""
    path = make_snapshot(folder, "bert", "sequence", num_labels=3)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.normalizer = normalizer
    tokenizer.add_tokens(["\u4e2d", "\u00e9"])
    tokenizer.save(str(path / "tokenizer.json"))
    change_json(path / "tokenizer_config.json", **settings)
    return path


def is_the_library_s(path: Path) -> bool:
    file = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokens: list[str] = AutoTokenizer.from_pretrained(path).tokenize(PROBE)
    return tokens == file.encode(PROBE, add_special_tokens=False).tokens


LOWER = normalizers.BertNormalizer(lowercase=True)
CASED = normalizers.BertNormalizer(lowercase=False)
ONLY_CASE = normalizers.BertNormalizer(lowercase=True, strip_accents=False)


@pytest.mark.parametrize(
    "name",
    quick_cases(
        [("BertTokenizer",), ("BertTokenizerFast",), ("TokenizersBackend",), (None,)],
        lambda name: name in ("BertTokenizer", "TokenizersBackend"),
    ),
)
@pytest.mark.parametrize(
    ("normalizer", "settings", "field"),
    [
        (LOWER, {"do_lower_case": False}, "do_lower_case is false"),
        (CASED, {"do_lower_case": True}, "do_lower_case is true"),
        (CASED, {}, "do_lower_case is left out"),
        (LOWER, {"strip_accents": False}, "strip_accents is false"),
        (ONLY_CASE, {}, "strip_accents is left out"),
        (LOWER, {"tokenize_chinese_chars": False}, "tokenize_chinese_chars is false"),
        (LOWER, {"do_lower_case": True}, None),
        (CASED, {"do_lower_case": False}, None),
        (ONLY_CASE, {"strip_accents": False}, None),
        (LOWER, {}, None),
    ],
)
def test_files_that_disagree_are_refused_just_where_the_library_goes_by_the_settings(
    name, normalizer, settings, field, tmp_path
):
    path = directory(tmp_path, normalizer, tokenizer_class=name, **settings)
    agrees = is_the_library_s(path)
    assert agrees == (field is None or name == "TokenizersBackend")
    if agrees:
        assert read_facts(path).text is not None
        return
    with pytest.raises(JobError, match=field) as caught:
        read_facts(path)
    assert "which BertTokenizer of transformers goes by" in str(caught.value)


def test_the_way_out_of_the_message_makes_the_files_agree(tmp_path):
    path = directory(tmp_path, LOWER, tokenizer_class="BertTokenizer", do_lower_case=False)
    AutoTokenizer.from_pretrained(path).save_pretrained(path)
    assert is_the_library_s(path)
    assert read_facts(path).text is not None


@pytest.mark.parametrize("in_config", ["left", "right", None])
@pytest.mark.parametrize("in_file", ["left", "right", None])
def test_a_text_loses_the_end_that_the_library_cuts(in_config, in_file, tmp_path):
    path = directory(tmp_path, LOWER, truncation_side=in_config)
    if in_file is not None:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.enable_truncation(6, direction=in_file)
        tokenizer.save(str(path / "tokenizer.json"))
    job = job_over("text", Model(path=str(path)), text=Text(max_tokens=5))
    settings = resolve_model(job).input.text
    text = "the cat sat on the mat"
    expected = AutoTokenizer.from_pretrained(path)(text, truncation=True, max_length=5)["input_ids"]
    assert tokenise(settings, [text]).ids.tolist() == expected


@pytest.mark.parametrize(
    ("family", "limit", "most"),
    [("bert", 5, 5), ("bert", 10**30, 64), ("bert", None, 64), ("roberta", None, 64)],
)
def test_a_text_has_at_most_the_tokens_that_tokenizer_and_model_take(family, limit, most, tmp_path):
    path = make_snapshot(tmp_path, family)
    change_json(path / "tokenizer_config.json", model_max_length=limit)
    text = read_facts(path).text
    assert text.max_tokens == most, "RoBERTa has 66 positions, the first two for padding"
    assert ("token_type_ids" in text.tensor_names) == (family == "bert"), "RoBERTa has one type"
