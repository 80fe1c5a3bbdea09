"""Test that models of clips and images write what transformers' greedy `generate` writes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.faults.fake_device import FakeGpu, installed
from support.models.feature_writers import (
    CLIPS,
    LOOK,
    LOOKERS,
    PICTURES,
    SPEECH,
    feature_writing,
    images,
    library_prompt,
    library_texts,
    make_feature_writer,
    prepared_features,
)
from support.models.language_models import predicted, write_language_tokenizer
from support.models.snapshots import change_json, write_image_processor, write_json, write_model
from support.runs.jobs import job_over

from pipeline.core.errors import JobError
from pipeline.core.figures import Counters, SliceFigures
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.library_check import hold_to_library
from pipeline.job.model import Model
from pipeline.models.agreement import AgreementLimits
from pipeline.models.directories.opening import read_facts
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import BatchLimits

FEW = BatchLimits(3)
"""Rows enter and leave one after the other."""
TILED = ("idefics3", "smolvlm")
"""The job gives their transform, so that they are held to nothing."""
QUICK = ("whisper", "trocr")
NEEDS = pytest.mark.skipif(not find_spec("num2words"), reason="SmolVLM's processor needs it")
FAMILIES = [pytest.param(f, marks=[NEEDS] * (f == "smolvlm")) for f in (*SPEECH, *PICTURES)]
ALL = [
    pytest.param(*f.values, marks=[*f.marks, *[pytest.mark.slow] * (f.values[0] not in QUICK)])
    for f in FAMILIES
]
CHAT = (
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "<image>Is it good or bad?"},
)
LIMITS = AgreementLimits(max_score_diff=0.01, min_cosine=0.999, max_relative_error=0.01)
NUM_INPUT = {
    "whisper": {100},
    "moonshine": {15, 27, 40, 52},
    "donut": {16},
    "llava": {23},
    "vipllava": {23},
    "idefics3": {26},
    "smolvlm": {26},
}
"""Vectors of an encoder; of other images 16 patches and a class. Or tokens of the prompt."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: make_feature_writer(tmp_path_factory.mktemp("m") / "m", family))


def data_of(family: str) -> Sequence[bytes]:
    return CLIPS if family in SPEECH else images()


def require_equal(path: Path, spec: ModelSpec, data: Sequence[bytes], **options: Any) -> list[str]:
    """Compare what a job writes to rows with what the library does, and return it."""
    rows = prepared_features(spec, data)
    expected = library_texts(path, spec, rows, **options)
    actual = predicted(spec, rows, FEW)
    assert [row["error"] for row in actual] == [None] * len(data)
    assert [row["text"] for row in actual] == [text.text for text in expected]
    assert [row["num_output_tokens"] for row in actual] == [len(text.tokens) for text in expected]
    logprobs = [row["mean_logprob"] for row in actual]
    np.testing.assert_allclose(logprobs, [text.logprob for text in expected], atol=1e-4)
    return [text.text for text in expected]


@pytest.mark.parametrize("family", ALL)
def test_texts_are_those_of_the_library_and_hold_the_check_by_one_pass(family: str, folder_of: Any):
    path = folder_of(family)
    spec, counters = feature_writing(path), Counters()
    texts = require_equal(path, spec, data_of(family))
    assert len({*texts}) > 2  # the model looks at its input
    config = PredictorConfig(spec, 4, 0.0, 1, pa.schema([]), LIMITS, uuid.uuid4().hex)
    rows = prepared_features(spec, data_of(family))
    actual = GenerateEngine(config).predict(rows, counters).to_pylist()
    assert {row["num_input_tokens"] for row in actual} == NUM_INPUT.get(family, {17})
    assert {row["finish_reason"] for row in actual} <= {"eos", "length"}
    checked = SliceFigures.from_json(counters).reference_check
    assert checked is not None
    assert checked.num_rows == checked.num_agreed == rows.num_rows
    assert family in TILED or hold_to_library(spec).startswith("transformers ")


@pytest.mark.parametrize("family", ALL)
def test_what_neighbours_are_changes_no_bit_of_a_row(family: str, folder_of: Any):
    spec = feature_writing(folder_of(family))
    engine = GenerateEngine(PredictorConfig(spec, 8, 0.0, 1, pa.schema([])))
    rows = prepared_features(spec, [data_of(family)[n] for n in (0, 2, 2, 0)])
    inputs = spec.input.arrays(rows)

    def first_of(*numbers: int) -> tuple[str, float]:
        results = engine.reduce({name: values[[*numbers]] for name, values in inputs.items()})
        return results["text"][0], results["mean_logprob"][0]

    assert first_of(0, 1, 2) == first_of(0, 3, 0)


SIZE = 363
"""Tokens of the tokenizer; the last ones are `feature_writers.CONTROL`."""
START, EN, DE, TRANSCRIBE, TRANSLATE, NO_TIMES = range(SIZE - 6, SIZE)
WHISPERS: dict[str, tuple[dict[str, Any], str]] = {
    "language": ({"language": "de"}, f"{START}, {DE}, {TRANSCRIBE}, {NO_TIMES}"),
    "name of a language": ({"language": "English", "task": "translate"},
                           f"{START}, {EN}, {TRANSLATE}, {NO_TIMES}"),
    "task": ({"task": "translate"},
             f"{START}, the likeliest of 2 languages, {TRANSLATE}, {NO_TIMES}"),
    "forced": ({"forced_decoder_ids": [[1, DE], [2, TRANSLATE], [3, NO_TIMES]]},
               f"{START}, {DE}, {TRANSLATE}, {NO_TIMES}"),
    "one language": ({"forced_decoder_ids": [[1, NO_TIMES]], "lang_to_id": None,
                      "task_to_id": None, "is_multilingual": False}, f"{START}, {NO_TIMES}"),
    "old": ({"no_timestamps_token_id": None, "forced_decoder_ids": None},
            f"{START}, the likeliest of 2 languages"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name != "task")) for name in WHISPERS]
)
def test_whisper_begins_as_its_directory_says(case: str, folder_of: Any, tmp_path: Path):
    values, begins = WHISPERS[case]
    path = copytree(folder_of("whisper"), tmp_path / "m")
    change_json(path / "generation_config.json", **values)
    spec = feature_writing(path)
    assert f"{begins}; without timestamps" in spec.notes[-1]
    require_equal(path, spec, CLIPS)


@pytest.mark.slow
def test_times_that_whisper_writes_are_no_part_of_a_text(folder_of: Any, tmp_path: Path):
    copytree(folder_of("whisper"), tmp_path, dirs_exist_ok=True)
    plain = feature_writing(tmp_path)
    change_json(tmp_path / "generation_config.json", no_timestamps_token_id=200, eos_token_id=2)
    spec, most = feature_writing(tmp_path), []
    rows = prepared_features(spec, CLIPS)
    # One call writes all of a clip: the library cuts it where it has times.
    expected = library_texts(tmp_path, spec, rows, force_unique_generate_call=True)
    actual = predicted(spec, rows, FEW)
    engine = GenerateEngine(PredictorConfig(plain, 4, 0.0, 1, pa.schema([])))
    for row, wanted in zip(actual, expected, strict=True):
        text = engine._module.text([token for token in wanted.tokens if token <= 200])
        assert (row["text"], row["num_output_tokens"]) == (text, len(wanted.tokens))
        most.append(max(wanted.tokens))
    assert max(most) > 200


@pytest.mark.parametrize(
    ("family", "prompt", "start"),
    [
        ("whisper", "<|start|><|de|><|translate|><|notimestamps|>",
         [START, DE, TRANSLATE, NO_TIMES]),
        pytest.param("moonshine", "the cat", None, marks=pytest.mark.slow),
        pytest.param("trocr", "the cat", None, marks=pytest.mark.slow),
        pytest.param("donut", "the cat", None, marks=pytest.mark.slow),
        pytest.param("blip", "the cat", None, marks=pytest.mark.slow),
        pytest.param("git", "the cat", None, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_prompt_is_what_the_decoder_begins_with(
    family: str, prompt: str, start: list[int] | None, folder_of: Any
):
    path = folder_of(family)
    spec = feature_writing(path, prompt=prompt)
    assert spec.to_dict() != feature_writing(path).to_dict()
    assert spec.task.generation is not None
    begins = [*spec.task.generation.rules.start]
    if start is None:
        assert begins[0] == 1
        assert len(begins) > 2
    else:
        assert begins == start
    given = torch.tensor([begins])
    if family == "blip":  # it takes off what ends the text of a prompt
        given = torch.cat([given, torch.tensor([[2]])], dim=1)
    name = "input_ids" if family in ("blip", "git") else "decoder_input_ids"
    require_equal(path, spec, data_of(family), **{name: given})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"return_timestamps": True}, "return_timestamps true: task 'generate' does not do that"),
        ({"language": "Klingon"}, "ValueError: Unsupported language: klingon"),
        ({"task": "sing"}, "ValueError: The `sing` task is not supported"),
        ({"lang_to_id": {"<|en|>": 10**7}}, "lang_to_id is 10000000, expected less than"),
        ({"forced_decoder_ids": [[1, 5], [3, 5]]}, "do not seem to correctly follow"),
        ({"forced_decoder_ids": [7]}, "the library cannot read its rules: TypeError"),
        ({"forced_decoder_ids": [[1, 10**7]]}, "decoder_start_token_id is 10000000, expected less"),
        ({"no_speech_threshold": 0.6}, "no_speech_threshold 0.6: task"),
        ({"decoder_start_token_id": None, "bos_token_id": None}, "no decoder_start_token_id"),
    ],
)
def test_what_whisper_cannot_do_here_is_refused_in_a_line(
    values: dict[str, Any], problem: str, folder_of: Any, tmp_path: Path
):
    copytree(folder_of("whisper"), tmp_path, dirs_exist_ok=True)
    change_json(tmp_path / "generation_config.json", **values)
    with pytest.raises(JobError, match=problem) as refused:
        feature_writing(tmp_path)
    assert "\n" not in str(refused.value)


def test_what_a_model_that_reads_no_text_cannot_have_is_refused(folder_of: Any, tmp_path: Path):
    path = folder_of("whisper")
    with pytest.raises(JobError, match=r"model\.prompt: the model reads no text"):
        feature_writing(path, prompt="Say {text}")
    messages = ({"role": "user", "content": "Say {text}"},)
    with pytest.raises(JobError, match=r"model\.messages: the model reads no text"):
        feature_writing(path, messages=messages)
    most = 256 - 4
    with pytest.raises(JobError, match=rf"max_new_tokens = {most + 1}: .* writes {most} tokens"):
        feature_writing(path, {"max_new_tokens": most + 1})
    copytree(path, tmp_path, ignore=ignore_patterns("tokenizer.json"), dirs_exist_ok=True)
    with pytest.raises(JobError, match=r"tokenizer\.json is missing; save the model's tokenizer"):
        feature_writing(tmp_path)


def test_a_job_that_says_no_length_gets_one_that_the_decoder_has_places_for(
    folder_of: Any, tmp_path: Path
):
    copytree(folder_of("whisper"), tmp_path, dirs_exist_ok=True)
    change_json(tmp_path / "config.json", max_target_positions=64)
    places, tensors = (
        "model.decoder.embed_positions.weight",
        load_file(tmp_path / "model.safetensors"),
    )
    save_file(
        {**tensors, places: tensors[places][:64].clone()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    spec = resolve_model(job_over("audio", Model(path=str(tmp_path), task="generate")))
    assert spec.task.generation is not None
    assert spec.task.generation.max_new_tokens == 64 - 4
    with pytest.raises(JobError, match=r"max_new_tokens = 128: .* writes 60 tokens at most"):
        feature_writing(tmp_path, {"max_new_tokens": 128})


def test_an_image_is_where_the_prompt_has_its_token(folder_of: Any):
    path = folder_of("llava")
    spec = feature_writing(path)
    assert spec.task.generation is not None
    start = spec.task.generation.rules.start
    token = max(start)
    assert (start[0], start.count(token)) == (1, 16)
    assert "16 tokens of the prompt are the image" in spec.notes[-1]
    for prompt in (None, "Say something", "<image> or <image>"):
        with pytest.raises(JobError, match=r"model\.prompt: must have <image> once"):
            feature_writing(path, prompt=prompt)
    with pytest.raises(JobError, match=r"model\.prompt: the model reads no text, so that \{text\}"):
        feature_writing(path, prompt="<image> {text}")
    with pytest.raises(JobError, match=r"model\.messages: must have <image> once"):
        feature_writing(path, messages=CHAT[:1])
    with pytest.raises(JobError, match=r"max_new_tokens = 74: .* writes 73 tokens at most"):
        feature_writing(path, {"max_new_tokens": 74})


@pytest.mark.parametrize("family", [family for family in ALL if family.values[0] in LOOKERS])
def test_prompts_and_messages_are_those_of_the_processor(family: str, folder_of: Any):
    path = folder_of(family)
    parts = [{"type": "image"}, {"type": "text", "text": "Is it good or bad?"}]
    system = [{"type": "text", "text": "Answer in one word."}]
    chat = [{"role": "system", "content": system}, {"role": "user", "content": parts}]
    for spec, expected in (
        (feature_writing(path), library_prompt(path, LOOK)),
        (feature_writing(path, messages=CHAT), library_prompt(path, "", chat)),
    ):
        assert spec.task.generation is not None
        assert [*spec.task.generation.rules.start] == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_on_a_stand_in_for_a_gpu_holds_the_check(family: str, folder_of: Any):
    spec = feature_writing(folder_of(family))
    rows = prepared_features(spec, data_of(family))
    plain = predicted(spec, rows, FEW)
    config = PredictorConfig(spec, 4, 1.0, 1, pa.schema([]), LIMITS, uuid.uuid4().hex)
    with installed(FakeGpu()):
        actual = GenerateEngine(config).predict(rows, {}).to_pylist()
        assert [row["text"] for row in actual] == [row["text"] for row in plain]
        counters = Counters()
        half = replace(config, spec=replace(spec, precision="bf16"), run_id=uuid.uuid4().hex)
        assert None not in GenerateEngine(half).predict(rows, counters)["text"].to_pylist()
    checked = SliceFigures.from_json(counters).reference_check
    assert checked is not None
    assert checked.num_rows == rows.num_rows
    assert checked.num_agreed >= rows.num_rows - 1  # rounding adds up in layers of random weights


@pytest.mark.slow
def test_an_encoder_needs_no_layer_that_no_decoder_looks_at(folder_of: Any, tmp_path: Path):
    """As published files of TrOCR have none, which the library fills up with random numbers."""
    path = folder_of("trocr")
    copytree(path, tmp_path, dirs_exist_ok=True)
    tensors = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    require_equal(tmp_path, feature_writing(tmp_path), data_of("trocr"))


@pytest.mark.parametrize(
    ("file", "values", "problem"),
    [
        ("processor_config.json", {"num_additional_image_tokens": 90}, "an image is 105 tokens of"),
        ("processor_config.json", {"patch_size": None},
         "makes no prompt with an image, .*: TypeError"),
        ("preprocessor_config.json", {"do_resize": False, "do_center_crop": False},
         "reads an image in a prompt as .* tokens, by its size; expected one number"),
    ],
)  # fmt: skip
def test_an_image_of_too_many_or_of_any_number_of_tokens_is_refused(
    file: str, values: dict[str, Any], problem: str, folder_of: Any, tmp_path: Path
):
    path = copytree(folder_of("llava"), tmp_path / "m")
    change_json(path / file, **values)
    generation = read_facts(path).generation
    assert generation is not None
    assert re.search(problem, generation.problem)


def test_a_model_that_gets_more_of_an_image_and_a_prompt_says_what_and_the_way_out(tmp_path: Path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    marks = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    size = write_language_tokenizer(tmp_path, ends=False, control=[*marks.values()])
    change_json(tmp_path / "tokenizer_config.json", extra_special_tokens=marks)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": size}
    vision = {**sizes, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = Gemma3Config(
        text_config={**text, "intermediate_size": 64}, vision_config=vision, mm_tokens_per_image=4,
        boi_token_index=size - 3, eoi_token_index=size - 2, image_token_id=size - 1,
    )  # fmt: skip
    write_model(tmp_path, Gemma3ForConditionalGeneration, config)
    write_image_processor(tmp_path, image_processor_type="Gemma3ImageProcessor")
    write_json(tmp_path / "processor_config.json", {"image_seq_length": 4})
    generation = read_facts(tmp_path).generation
    assert generation is not None
    assert generation.problem == (
        "model.path: Gemma3ForConditionalGeneration reads images and texts, and its library gives "
        "it token_type_ids as well; model.factory, with source.inputs, runs it; a directory of its "
        "language model alone writes to texts"
    )
