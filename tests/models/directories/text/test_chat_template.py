"""Chat templates are rendered as transformers does it, once, in a sandbox with bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jinja2 import TemplateError
from support.models.choosing import MESSAGES, TEXTS
from support.models.language_models import CHAT, make_language_model
from support.models.snapshots import change_json
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.models.directories.text.chat_program import render
from pipeline.models.directories.text.chat_template import FILE, LEGACY, chat_prompt, image_prompt

PAIRS = [(message["role"], message["content"]) for message in MESSAGES]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("chat") / "m", "llama")


def written(folder: Path, template: str) -> Path:
    folder.mkdir()
    (folder / FILE).write_text(template)
    return folder


@pytest.mark.parametrize("is_in_config", [False, True])
def test_a_prompt_is_what_the_library_renders(model: Path, tmp_path: Path, is_in_config: bool):
    from transformers import AutoTokenizer

    folder = model
    if is_in_config:
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text("{}")
        change_json(folder / "tokenizer_config.json", chat_template=CHAT)
    prompt = chat_prompt(folder, PAIRS)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for text in TEXTS:
        messages = [
            {**message, "content": message["content"].replace("{text}", text, 1)}
            for message in MESSAGES
        ]
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert prompt.before + text + prompt.after == expected


def test_special_tokens_loop_controls_and_generation_marks_are_known(tmp_path: Path):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}{{ missing }}"
    )
    folder = written(tmp_path / "m", template)
    (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}}')
    prompt = chat_prompt(folder, PAIRS)
    assert prompt.before == '<s>"Answer in one word.""Is it good or bad? '
    assert prompt.after == '"'
    assert not prompt.adds_special


SANDBOXED = {
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ namespace.__init__.__globals__ }}": "SecurityError",
    "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}": "more than 1,048,576",
    "{{ raise_exception('no system role') }}": "no system role",
    "{{ strftime_now('%Y') }}": "'strftime_now' is undefined",
    "{{ lipsum(n=1) }}": "'lipsum' is undefined",
    "{{ cycler('a', 'b').next() }}": "'cycler' is undefined",
    "{{ joiner(',')() }}": "'joiner' is undefined",
    "{{ [1, 2, 3] | random }}": "No filter named 'random'",
    "{{ raise_exception }}": "it writes an address of memory",
    "{{ ([1] | map('string')) ~ '' }}": "it writes an address of memory",
}


@pytest.mark.parametrize("template", SANDBOXED)
def test_a_template_sees_and_writes_nothing_but_texts(template: str):
    with pytest.raises(TemplateError) as raised:
        render(template, [{"role": "user", "content": "a"}], {})
    assert SANDBOXED[template] in f"{type(raised.value).__name__}: {raised.value}"


HOSTILE = {
    "{{ messages.append(1) }}": "SecurityError",
    "{{ 'x' * 9999999999 }}": "MemoryError|too much memory",
    "{% if %}": "TemplateSyntaxError",
    "{{ messages[0].content }}": "writes the text 0 times",
    "{{ messages[1].content }}{{ messages[1].content }}": "writes the text 2 times",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "too long",
}


@pytest.mark.parametrize(
    "template", quick_cases(((name,) for name in HOSTILE), lambda name: HOSTILE[name] != "too long")
)
def test_a_hostile_template_is_one_line(template: str, tmp_path: Path):
    with pytest.raises(JobError, match=HOSTILE[template]) as raised:
        chat_prompt(written(tmp_path / "m", template), PAIRS)
    assert "write model.prompt instead" in str(raised.value)
    assert "\n" not in str(raised.value)


ABOUT = [("system", "Be short."), ("user", "Look: <image>What is it?")]
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}|{% endfor %}"
    "{% endfor %}"
)


def test_a_content_becomes_the_parts_that_its_image_divides(tmp_path: Path):
    folder = written(tmp_path / "m", PARTS)
    assert image_prompt(folder, ABOUT, "<image>") == "Be short.|Look: |<image>|What is it?|"
    for number, name in enumerate(("tokenizer_config.json", LEGACY, "processor_config.json")):
        (folder / name).write_text(json.dumps({"chat_template": f"{number}{PARTS}"}))
        # That of a tokenizer comes last, those of a processor first.
        begins = str(number) if number else "Be"
        assert image_prompt(folder, ABOUT, "<image>").startswith(begins)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (PARTS.replace("<image>", ""), "writes <image> 0 times"),
        (PARTS + "<image>", "writes <image> 2 times"),
        ("<image>{{ messages[1].content[2].text }}", 'writes no "Be short\\."'),
        ("{{ messages[0].content + '' }}", "TypeError"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes <image> 0 times"),
    ],
)
def test_a_template_without_a_place_for_the_image_is_refused(
    template: str, words: str, tmp_path: Path
):
    with pytest.raises(JobError, match=words) as raised:
        image_prompt(written(tmp_path / "m", template), ABOUT, "<image>")
    assert "write model.prompt instead" in str(raised.value)


def test_a_directory_without_a_template_is_refused(tmp_path: Path):
    with pytest.raises(JobError, match="has no chat template"):
        chat_prompt(tmp_path, PAIRS)
