"""Test that chat templates are rendered by the library, once, in a process with limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from support.models.feature_writers import make_feature_writer
from support.models.language_models import CHAT, MESSAGES, TEXTS, make_language_model
from support.models.snapshots import change_json
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.models.directories.snapshot import open_directory
from pipeline.models.directories.text.chat_template import chat_prompt
from pipeline.models.directories.text.image_prompts import image_prompt
from pipeline.preprocessing.texts.text_settings import Prompt

PAIRS = [(message["role"], message["content"]) for message in MESSAGES]
FILE = "chat_template.jinja"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("chat") / "m", "llama", chat=None)


@pytest.fixture
def written(model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Returns a function that copies the model, with another template."""

    def copy(template: str) -> Path:
        folder = copytree(model, tmp_path / "m")
        (folder / FILE).write_text(template)
        return folder

    return copy


def prompt_of(folder: Path) -> Prompt:
    return chat_prompt(open_directory(str(folder), {})[0], PAIRS)


LAST = "{{ messages[1].content"
WAYS: dict[str, str] = {
    "plain": CHAT,
    "stripped": CHAT.replace("message.content", "message.content | trim"),
    "stripped alone": "<U>{{ messages[1].content.split('? ', 1)[1] | trim }}</U>",
    "tools": "{% if tools is not none %}T{% endif %}{% if tools is defined %}D{% endif %}"
    "{% if documents is none %}N{% endif %}" + LAST + " }}",
    "tokens": "{{ bos_token }}" + LAST + " }}{{ eos_token }}{{ missing }}",
    "marks": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_is_what_the_library_renders(way: str, written: Callable[[str], Path]):
    from transformers import AutoTokenizer

    folder = written(WAYS[way])
    prompt, tokenizer = prompt_of(folder), AutoTokenizer.from_pretrained(folder)
    assert prompt.strips == {"stripped": "right", "stripped alone": "both"}.get(way, "")
    assert not prompt.adds_special
    for text in TEXTS:
        messages = [
            {**message, "content": message["content"].replace("{text}", text, 1)}
            for message in MESSAGES
        ]
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert prompt.around(text) == expected


def test_a_template_in_another_file_and_a_date_of_its_own_are_taken(model: Path, tmp_path: Path):
    folder = copytree(model, tmp_path / "m")
    template = (
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
    )
    change_json(folder / "tokenizer_config.json", chat_template=f"{template} {LAST} }}}}")
    assert prompt_of(folder).before == "26 Jul 2024 Is it good or bad? "


REFUSED = {
    "{{ messages.append(1) }}": "SecurityError",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{{ namespace.__init__.__globals__ }}": "SecurityError",
    "{{ raise_exception('no system role') }}": "no system role",
    "{{ strftime_now('%Y') }}": "'the_time' is undefined",
    "{{ raise_exception }}": "writes an address of memory",
    "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}": "writes too much",
    "{{ 'x' * 99999999999 }}": "MemoryError|too much memory",
    "{% if %}": "TemplateSyntaxError",
    "{{ messages[0].content }}": "writes the text 0 times",
    "{{ messages[1].content }}{{ messages[1].content }}": "writes the text 2 times",
    LAST + " | upper }}": "writes the text 0 times",
    LAST + " | tojson }}": "does not write each text as it is: of ",
    LAST + "[:200] }}": "does not write each text as it is: of ",
    LAST + ".split('</think>')[-1] }}": "does not write each text as it is: of ",
    LAST + " }}{% if messages[1].content | length > 99 %}!{% endif %}": "does not write each text",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "too long",
}


@pytest.mark.parametrize(
    "template", quick_cases(((name,) for name in REFUSED), lambda name: REFUSED[name] != "too long")
)
def test_a_template_that_writes_no_prompt_around_a_text_is_one_line(
    template: str, written: Callable[[str], Path]
):
    with pytest.raises(JobError, match=REFUSED[template]) as raised:
        prompt_of(written(template))
    assert "write model.prompt instead" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_directory_without_a_template_is_refused(model: Path):
    with pytest.raises(JobError, match="has no chat template"):
        prompt_of(model)


ABOUT = [("system", "Be short."), ("user", "Look: <image>What is it?")]
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}|{% endfor %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_feature_writer(tmp_path_factory.mktemp("chat") / "m", "llava")


def about(folder: Path) -> str:
    from transformers import AutoTokenizer

    ids = image_prompt(open_directory(str(folder), {})[0], "", ABOUT, "<image>")
    return str(AutoTokenizer.from_pretrained(folder).decode(ids))


def test_a_content_becomes_the_parts_that_its_image_divides(viewer: Path, tmp_path: Path):
    folder = copytree(viewer, tmp_path / "m")
    (folder / FILE).write_text(PARTS)
    assert about(folder) == f"<s>Be short.|Look: |{'<image>' * 16}|What is it?|"
    (folder / FILE).unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": f"old {PARTS}"}))
    assert about(folder).startswith("<s>old Be")


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
    template: str, words: str, viewer: Path, tmp_path: Path
):
    folder = copytree(viewer, tmp_path / "m")
    (folder / FILE).write_text(template)
    with pytest.raises(JobError, match=words) as raised:
        about(folder)
    assert "write model.prompt instead" in str(raised.value)
