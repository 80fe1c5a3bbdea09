"""A model of images scores the answers of a job as transformers' own forward does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.models.choosing import CHOICES, MESSAGES, choosing, predicted, scores_of
from support.models.feature_writers import (
    LOOK,
    LOOKERS,
    feature_writing,
    images,
    library_prompt,
    make_feature_writer,
    pixels_of,
    prepared_features,
)
from tokenizers import Tokenizer, normalizers

from pipeline.core.errors import JobError
from pipeline.models.directories.text.choices import PicturedChoices
from pipeline.models.spec import load_module
from pipeline.preprocessing.model_input import BatchLimits

NUM_PATCHES = 16
ANSWERS = dict(zip(CHOICES, ("positive", "not at all good", "neither good nor bad"), strict=True))
"""Of one token and of several."""
looking = partial(choosing, input_name="image", prompt=LOOK, choices=ANSWERS)


SAID = (
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "<image>Is it good or bad?"},
)
TILED = [pytest.param(name, marks=pytest.mark.slow) for name in LOOKERS if name != "llava"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: make_feature_writer(tmp_path_factory.mktemp("m") / "m", family))


@pytest.fixture(scope="module")
def path(folder_of: Any) -> Path:
    return folder_of("llava")


def library_scores(path: Path, prompt: str, pixels: torch.Tensor) -> np.ndarray:
    """Return the softmax (B, 3) of mean log-likelihoods, by a pass for each image and answer."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    means = torch.empty(len(pixels), len(ANSWERS))
    begins = len(library_prompt(path, prompt))
    for place, answer in enumerate(ANSWERS.values()):
        ids = torch.tensor([library_prompt(path, f"{prompt} {answer}")])
        labels = ids.clone()
        labels[:, :begins] = -100
        for row, each in enumerate(pixels):
            with torch.inference_mode():
                values = pixels_of(path, each[None])
                loss = model.eval()(input_ids=ids, pixel_values=values, labels=labels).loss
            means[row, place] = -loss
    return means.softmax(dim=1).numpy()


@pytest.mark.parametrize("family", ["llava", *TILED])
@pytest.mark.parametrize("prompt", [LOOK, pytest.param("<image>", marks=pytest.mark.slow)])
def test_scores_are_those_of_the_library(prompt: str, family: str, folder_of: Any):
    path = folder_of(family)
    spec = looking(path, prompt=prompt)
    one, *several = map(len, spec.task.answers)
    assert one == 1 < min(several)
    rows = prepared_features(spec, images())
    [values] = spec.input.arrays(rows).values()
    [pixels] = spec.input.normaliser(torch.float32)(torch.from_numpy(np.array(values)))
    expected = library_scores(path, prompt, pixels)
    found = predicted(spec, rows, BatchLimits(4))
    np.testing.assert_allclose([scores_of(row) for row in found], expected, atol=1e-4)
    assert [row["label"] for row in found] == [[*ANSWERS][n] for n in expected.argmax(axis=1)]
    assert np.ptp(expected, axis=0).max() > 5e-4  # the image decides


@pytest.mark.parametrize("family", ["llava", *TILED])
def test_neither_batches_nor_neighbours_change_a_score(family: str, folder_of: Any):
    spec, data = looking(folder_of(family)), images()
    alone = predicted(spec, prepared_features(spec, data), BatchLimits(1))
    order = (3, 0, 3, 3, 5, 1)
    rows = prepared_features(spec, [data[number] for number in order])
    found = [scores_of(row) for row in predicted(spec, rows, BatchLimits(4))]
    np.testing.assert_allclose(found, [scores_of(alone[n]) for n in order], atol=1e-5)


def test_prompt_and_image_are_read_once_for_all_answers(path: Path):
    module, seen = load_module(looking(path)), list[tuple[int, bool]]()
    assert isinstance(module, PicturedChoices)
    module.model.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["input_ids"].shape[1], "pixel_values" in given)),
        with_kwargs=True,
    )
    with torch.inference_mode():
        module(torch.zeros(2, 3, 32, 32))
    start = len(module.get_buffer("start"))
    assert seen == [(start, True), *((len(a) - 1, False) for a in module.answers() if len(a) > 1)]


def test_the_prompt_is_in_the_settings(path: Path):
    plain = looking(path)
    assert looking(path, prompt=f"{LOOK} ").to_dict() == plain.to_dict()
    assert looking(path, prompt=f"See {LOOK}").to_dict() != plain.to_dict()


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"prompt": "Sentiment:"}, r"model\.prompt: must have <image> once"),
        ({"prompt": "<image> {text}"}, r"model\.prompt: the model reads no text, so that \{text\}"),
        ({"prompt": None, "messages": MESSAGES}, r"model\.messages: the model reads no text, so"),
        ({"prompt": None, "messages": SAID[:1]}, r"model\.messages: must have <image> once"),
        ({"prompt": "<image>" + " cat" * 99}, r"model\.prompt: has \d+ tokens .* takes 96 at most"),
        ({"choices": ("yes", "<image>")}, r"model\.choices: '<image>' has the token that stands"),
        ({"prior_corrected": True}, r"model\.prior_corrected: takes off .* no image is empty"),
    ],
)
def test_a_job_that_does_not_fit_is_told_what_would_be_right(
    model: Mapping[str, Any], problem: str, path: Path
):
    with pytest.raises(JobError, match=problem) as refused:
        looking(path, **model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["llava", *TILED])
def test_prompts_and_messages_are_those_of_the_processor(family: str, folder_of: Any):
    path = folder_of(family)
    assert [*looking(path).task.start] == library_prompt(path, LOOK)
    parts = [{"type": "image"}, {"type": "text", "text": "Is it good or bad?"}]
    system = [{"type": "text", "text": "Answer in one word."}]
    expected = library_prompt(
        path, "", [{"role": "system", "content": system}, {"role": "user", "content": parts}]
    )
    spec = looking(path, prompt=None, messages=SAID)
    assert [*spec.task.start] == expected
    assert spec.task.answers == looking(path).task.answers
    writing = feature_writing(path, messages=SAID).task.generation
    assert writing is not None
    assert [*writing.rules.start] == expected


def test_padding_that_a_tokenizer_was_saved_with_is_no_part_of_a_prompt(tmp_path: Path):
    path = make_feature_writer(tmp_path / "m", "llava")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    expected = feature_writing(path).task.generation
    tokenizer.enable_padding(direction="left", pad_id=2, length=6)
    tokenizer.save(str(path / "tokenizer.json"))
    assert feature_writing(path).task.generation == expected
    tokenizer.normalizer = normalizers.Replace("a", "")
    tokenizer.save(str(path / "tokenizer.json"))
    with pytest.raises(JobError, match="makes no token of the text 'a'"):
        feature_writing(path)


@pytest.mark.slow
def test_what_task_generate_refuses_does_not_matter(tmp_path: Path):
    path = make_feature_writer(tmp_path / "m", "llava", guidance_scale=2.0)
    spec = looking(path)
    assert spec.task.start.count(max(spec.task.start)) == NUM_PATCHES
    assert spec.task.start[0] == 1
    with pytest.raises(JobError, match="guidance_scale"):
        looking(path, task="generate", choices=())


@pytest.mark.slow
def test_models_whose_images_are_no_tokens_score_no_answers(tmp_path: Path):
    path = make_feature_writer(tmp_path / "m", "git")
    with pytest.raises(JobError, match=r"'choices': GitForCausalLM of model\.path serves generate"):
        looking(path)
