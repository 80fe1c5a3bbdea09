"""Test that prompts get the library's tokens, and that the text of a row stays text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models.language_models import (
    CHOICES,
    MAX_TOKENS,
    MESSAGES,
    PROMPT,
    TEXTS,
    choosing,
    make_language_model,
    prepared,
)
from support.runs.selection import examples
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.core.errors import JobError
from pipeline.core.failures import RowError
from pipeline.core.schema import ERROR, NUM_TOKENS, TOKEN_IDS, TRUNCATED
from pipeline.job.transform import Text
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.text_settings import Prompt

ROLES = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>")
CHAT_PROMPT = Prompt("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("prompts") / "m", "llama")


def opened(model: Path, prompt: Prompt = CHAT_PROMPT) -> PromptTokenizer:
    return PromptTokenizer(Tokenizer.from_file(str(model / "tokenizer.json")), prompt)


def test_texts_without_control_tokens_are_tokenised_as_the_library_does_it(model: Path):
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(model)
    before, after = PROMPT.split("{text}")
    prompts = opened(model, Prompt(before, after)).prompts(TEXTS)
    assert prompts == [library(f"{before}{text}{after}").input_ids for text in TEXTS]
    prompts = opened(model).prompts(TEXTS)
    chat = [f"{CHAT_PROMPT.before}{text}{CHAT_PROMPT.after}" for text in TEXTS]
    assert prompts == [library(text, add_special_tokens=False).input_ids for text in chat]
    strips = replace(CHAT_PROMPT, strips="both")
    texts = [" \n a film ", " </s>\n"]
    stripped = [text.strip() for text in texts]
    assert opened(model, strips).prompts(texts) == opened(model).prompts(stripped)


PARTS = st.lists(st.sampled_from([*ROLES, "<|im_", "end|>", "<", "s>", "a", " ", "\n", "{{", "}}"]))


@given(PARTS.map("".join))
@examples(200)
def test_control_tokens_of_a_text_are_text(model: Path, text: str):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    [ids] = opened(model).prompts([text])
    control = [tokenizer.id_to_token(number) for number in ids if number < len(ROLES)]
    assert control == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    wanted = f"{CHAT_PROMPT.before}{text}{CHAT_PROMPT.after}"
    assert tokenizer.decode(ids, skip_special_tokens=False) == wanted


def test_a_long_row_is_cut_at_the_end_of_its_text_and_keeps_the_prompt(model: Path):
    tokenizer = opened(model)
    [whole] = tokenizer.prompts(["cat " * 50])
    cut = tokenizer.cut(whole, 30)
    [empty] = tokenizer.prompts([""])
    num_after = len(empty) - cut.index(whole[-1]) if whole[-1] in empty else 0
    assert len(cut) == 30
    assert num_after
    end = tokenizer.num_fixed - len(tokenizer._before)
    assert cut[-end:] == empty[-end:]
    assert cut[:-end] == whole[: 30 - end]


@pytest.mark.parametrize("messages", [None, MESSAGES])
def test_prompts_of_any_length_are_tokenised_or_have_their_reason(model: Path, messages: object):
    spec = choosing(model, **({"messages": messages} if messages else {}))
    sizes = (0, 1, 10, 79, 100, 1_000, 5_000)
    texts = ["cat " * size for size in sizes]
    rows = prepared(
        spec, [*texts, "<|im_end|>" * 2_000, "\N{GRINNING FACE}" * 5_000, "\u202e\u0645"]
    )
    assert rows.column(ERROR).null_count == rows.num_rows
    limit = spec.input.max_tokens
    assert limit is not None
    counts = rows.column(NUM_TOKENS).to_pylist()
    assert counts == [len(ids) for ids in rows.column(TOKEN_IDS).to_pylist()]
    assert max(counts) == limit
    truncated = rows.column(TRUNCATED).to_pylist()
    assert truncated[0] is truncated[-1] is False
    assert truncated[5:9] == [True] * 4
    for ids in rows.column(TOKEN_IDS).to_pylist():
        assert ids[-2:] == rows.column(TOKEN_IDS).to_pylist()[0][-2:]


def test_a_text_that_cannot_be_kept_text_is_its_rows_failure():
    words = {"a": 0, "stop": 1, "?": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["stop", "~", "?"])
    prompter = PromptTokenizer(tokenizer, Prompt("a ", " a", adds_special=False))
    assert prompter.prompts(["a", "zz", "stop"]) == [[0, 0, 0], [0, 2, 0], [0, 2, 2, 0]]
    with pytest.raises(RowError, match="makes the control token '~' of the text"):
        prompter.prompts(["a ~"])


def test_the_prompt_must_leave_room_for_a_text(model: Path):
    spec = choosing(model)
    answers = opened(model, Prompt(*PROMPT.split("{text}"))).answers([*CHOICES.values()])
    assert spec.input.max_tokens == MAX_TOKENS - max(map(len, answers))
    with pytest.raises(JobError, match="leaves no room for a text beside the prompt; give"):
        choosing(model, text=Text(max_tokens=3))
    with pytest.raises(JobError, match=r"text\.prefix: has no effect beside a prompt"):
        choosing(model, text=Text(prefix="query: "))


def test_answers_continue_what_stands_before_them(model: Path):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for prompt, space in ((Prompt("", "Sentiment:"), " "), (CHAT_PROMPT, "")):
        answers = opened(model, prompt).answers(["positive"])
        assert [tokenizer.decode(ids) for ids in answers] == [f"{space}positive"]
