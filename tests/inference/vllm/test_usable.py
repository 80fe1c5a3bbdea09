"""Test which jobs engine vllm refuses, before vLLM is looked at; needs no vLLM."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from support.models.language_models import make_language_model, make_writer, writing
from support.models.quantised import QUANTISERS, quantise

from pipeline.core.errors import JobError
from pipeline.inference.engines import engine_class
from pipeline.inference.library_check import hold_to_library
from pipeline.inference.vllm.usable import reference_problem, require_usable_engine
from pipeline.inference.vllm.vllm_engine import VllmEngine
from pipeline.job.model import Generate, Model
from pipeline.models.spec import ModelSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_writer(tmp_path_factory.mktemp("language") / "m")


def usable(spec: ModelSpec, *, is_on_gpu: bool = False, is_here: bool = False) -> None:
    require_usable_engine(spec, is_on_gpu=is_on_gpu, is_here=is_here)


def test_it_is_an_engine_of_its_own_in_the_fingerprint(folder: Path):
    spec, own = writing(folder, engine="vllm"), writing(folder)
    assert engine_class(spec) is VllmEngine
    assert spec.to_dict() == {**own.to_dict(), "runtime": "vllm"}
    assert writing(folder, engine="generate") == own
    assert not spec.is_reference
    assert spec.as_reference() == own
    usable(spec)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_where_it_is_not_installed_the_error_names_the_extra(folder: Path):
    with pytest.raises(JobError, match=r"'vllm': .*pip install 'batch-inference-pipeline\[vllm\]'"):
        usable(writing(folder, engine="vllm"), is_here=True)


@pytest.mark.parametrize(("precision", "is_on_gpu"), [("fp16", False), ("int8", False),
                         ("tf32", True), ("auto", True)])  # fmt: skip
def test_other_precisions_are_refused(folder: Path, precision: str, is_on_gpu: bool):
    spec = replace(writing(folder, engine="vllm"), precision=precision)
    with pytest.raises(JobError, match=f"it runs model.precision fp32.* here, not {precision}"):
        usable(spec, is_on_gpu=is_on_gpu)


def test_rules_that_it_applies_in_another_way_are_refused_by_name(folder: Path):
    spec = writing(folder, engine="vllm")
    assert spec.task.generation is not None
    rules = replace(spec.task.generation.rules, no_repeat_ngram=2, repetition_penalty=1.2)
    task = replace(spec.task, generation=replace(spec.task.generation, rules=rules))
    with pytest.raises(JobError, match="the rules no_repeat_ngram of generation_config"):
        usable(replace(spec, task=task))


def test_weights_that_are_too_large_for_the_reference_are_not_compared_and_this_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = writing(folder, engine="vllm")
    assert reference_problem(spec) == ""
    monkeypatch.setattr("pipeline.inference.vllm.usable._MOST_REFERENCE_BYTES", 1_000)
    assert "rows of vLLM are not compared with eager fp32" in reference_problem(spec)
    assert reference_problem(writing(folder)) == ""


@pytest.mark.parametrize("how", QUANTISERS)
def test_quantised_weights_need_this_engine_and_all_of_their_tensors(how: str, folder: Path):
    path = shutil.copytree(folder, folder.with_name(f"m-{how}"))
    quantise(path, how)
    spec = writing(path, engine="vllm", precision="bf16")
    usable(spec)
    assert spec.as_reference() == spec
    assert hold_to_library(spec) == ""
    with pytest.raises(JobError, match=r"runs model.precision bf16 here for weights quantised by"):
        usable(replace(spec, precision="fp32"))
    with pytest.raises(JobError, match=r"weights quantised by .* need model.engine: vllm; or take"):
        writing(path)
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith(("scale", "scales")))]
    safetensors.torch.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(JobError, match=r"do not fit LlamaForCausalLM .* missing"):
        writing(path, engine="vllm", precision="bf16")


def test_other_quantised_weights_are_refused(folder: Path):
    path = shutil.copytree(folder, folder.with_name("m-fp8"))
    values = json.loads((path / "config.json").read_text())
    by = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (path / "config.json").write_text(json.dumps({**values, "quantization_config": by}))
    with pytest.raises(JobError, match="quantised weights are not supported"):
        writing(path, engine="vllm", precision="bf16")


def test_models_that_do_not_continue_a_text_are_refused(tmp_path: Path):
    folder = make_language_model(tmp_path / "m", "t5")
    with pytest.raises(JobError, match="T5ForConditionalGeneration does not continue a text"):
        writing(folder, engine="vllm", prompt=None)


def test_tasks_and_fields_that_it_does_not_take_are_refused():
    with pytest.raises(ValueError, match="engine 'vllm' does not run task 'classify', only torch"):
        Model(path="m", task="classify", engine="vllm")
    with pytest.raises(ValueError, match="runtime has no effect with engine 'vllm'"):
        Model(path="m", task="generate", engine="vllm", runtime="eager")


@pytest.mark.parametrize(
    ("engine", "generate", "message"),
    [
        (None, {"temperature": 0.5, "seed": 1}, "generate.temperature needs engine: vllm"),
        ("vllm", {"temperature": 0.5}, "needs generate.seed, so that a run again gives the same"),
        ("vllm", {"seed": 1}, "generate.seed has no effect without generate.temperature"),
        (None, {"top_p": 0.5}, "generate.top_p has no effect without generate.temperature"),
    ],
)
def test_draws_need_the_engine_and_a_seed(
    engine: str | None, generate: dict[str, Any], message: str
):
    section = Generate(**generate)
    with pytest.raises(ValueError, match=message):
        Model(path="m", task="generate", engine=engine, generate=section)


def test_the_settings_of_draws_are_in_the_fingerprint_and_leave_those_without_as_they_were(
    folder: Path,
):
    plain = writing(folder, engine="vllm")
    assert not {"temperature", "top_p", "seed"} & {*plain.to_dict()["task"]["generation"]}
    options = [{"temperature": 0.5, "seed": 1}, {"temperature": 0.5, "seed": 2},
               {"temperature": 0.5, "seed": 1, "top_p": 0.9}]  # fmt: skip
    specs = [plain, *(writing(folder, engine="vllm", generate=o) for o in options)]
    assert len({json.dumps(spec.to_dict(), sort_keys=True) for spec in specs}) == len(specs)
