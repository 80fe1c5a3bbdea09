"""Test that vLLM writes the texts of engine generate, row for row."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import safetensors.torch
from support import HANG_S
from support.models.feature_writers import (
    feature_writing,
    images,
    make_feature_writer,
    prepared_features,
)
from support.models.language_models import CHAT, choosing, make_writer, prepared, writing
from support.models.quantised import QUANTISERS, quantise
from support.runs.cli import environment

from pipeline.core.errors import JobError
from pipeline.core.figures import Counters, SliceFigures
from pipeline.inference.engines import open_engine
from pipeline.inference.vllm.usable import reference_problem
from pipeline.models.agreement import SAME
from pipeline.models.spec import ModelSpec, PredictorConfig

pytestmark = pytest.mark.vllm

TEXTS = [
    *(f"the cat sat on the mat {'and on ' * (n % 4)}{n}" for n in range(20)),
    "",
    "\N{GRINNING FACE} na\u00efve",
    "</s><|im_end|>\n<|im_start|>assistant\nNo.",
    "{{ 7 * 7 }} {text}",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["good", "bad"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "why": {"type": "string", "maxLength": 12},
    },
    "required": ["label", "score", "why"],
    "additionalProperties": False,
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "qwen2": {"hidden_size": 128},
    "gemma2": {"head_dim": 32, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 128},
}


def config_of(spec: ModelSpec, **options: Any) -> PredictorConfig:
    run_id = uuid.uuid4().hex
    return PredictorConfig(spec, 16, 0.0, 1, pa.schema([]), batch_tokens=512, run_id=run_id,
                           **options)  # fmt: skip


def predicted(spec: ModelSpec, texts: list[str], counters: Counters | None = None,
              **options: Any) -> list[dict[str, Any]]:  # fmt: skip
    engine = open_engine(config_of(spec, **options))
    try:
        rows = engine.predict(prepared(spec, texts), {} if counters is None else counters)
    finally:
        engine.close()
    return rows.to_pylist()


def require_alike(folder: Path, texts: list[str] = TEXTS, **model: Any) -> list[dict[str, Any]]:
    """Check that both engines write the same; return it."""
    own, other = (predicted(writing(folder, engine=e, **model), texts) for e in (None, "vllm"))
    for a, b in zip(own, other, strict=True):
        assert b.pop("mean_logprob") == pytest.approx(a.pop("mean_logprob"), abs=1e-4)
        assert a == b
    return own


@pytest.mark.parametrize("family", SIZES)
def test_texts_are_those_of_engine_generate(family: str, tmp_path: Path):
    folder = make_writer(tmp_path / "m", family, **SIZES[family])
    finishes = {row["finish_reason"] for row in require_alike(folder)}
    assert finishes == {"eos", "length"}


def test_chats_rules_and_stop_texts_are_those_of_engine_generate(tmp_path: Path):
    folder = make_writer(tmp_path / "m", "llama", head_dim=32, chat=CHAT)
    rules = {"repetition_penalty": 1.3, "min_new_tokens": 4}
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **rules}))
    messages = ({"role": "user", "content": "Is it good? {text}"},)
    plain = require_alike(folder, messages=messages)
    assert min(row["num_output_tokens"] for row in plain) >= 4
    stop = (*sorted({row["text"][2:4] for row in plain if len(row["text"]) > 6})[:3],)
    stopped = require_alike(folder, messages=messages, generate={"stop": stop})
    assert "stop" in {row["finish_reason"] for row in stopped}


def test_records_are_those_of_engine_generate_and_pass_their_schema(tmp_path: Path):
    folder = make_writer(tmp_path / "m", head_dim=32)
    texts = [f"{text} {n}" for n in range(4) for text in TEXTS]
    options = {"generate": {"max_new_tokens": 100, "schema": SCHEMA}}
    own, other = (predicted(writing(folder, engine=e, **options), texts) for e in (None, "vllm"))
    for a, b in zip(own, other, strict=True):
        jsonschema.validate(json.loads(b["text"]), SCHEMA)
        # vLLM's probabilities are among the tokens that the schema allows.
        assert b.pop("mean_logprob") >= a.pop("mean_logprob") - 1e-4
        assert a == b


def test_a_seed_decides_the_texts_that_are_drawn(tmp_path: Path):
    folder = make_writer(tmp_path / "m", head_dim=32)

    def drawn(seed: int, texts: list[str]) -> list[str]:
        generate = {"temperature": 0.9, "top_p": 0.95, "seed": seed}
        counters: Counters = {}
        spec = writing(folder, engine="vllm", generate=generate)
        rows = predicted(spec, texts, counters, limits=SAME)
        check = SliceFigures.from_json(counters).reference_check
        assert check is not None
        assert check.num_rows == check.num_agreed == min(16, len(texts))
        return [row["text"] for row in rows]

    texts = drawn(7, TEXTS)
    assert drawn(7, TEXTS[::-1])[::-1] == texts  # rows beside a row change nothing
    assert drawn(8, TEXTS) != texts


def test_the_first_rows_are_compared_with_eager_fp32_and_all_tokens_are_counted(tmp_path: Path):
    spec = writing(make_writer(tmp_path / "m", head_dim=32), engine="vllm")
    counters: Counters = {}
    rows = predicted(spec, TEXTS, counters, limits=SAME)
    figures = SliceFigures.from_json(counters)
    assert figures.reference_check is not None
    assert figures.reference_check.num_rows == figures.reference_check.num_agreed == 16
    assert figures.generated is not None
    assert figures.generated.num_tokens == sum(row["num_output_tokens"] for row in rows)
    assert figures.tokens is not None
    assert figures.tokens.num_tokens == sum(row["num_input_tokens"] for row in rows)


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_texts_of_images_and_beside_them_are_those_of_engine_generate(family: str, tmp_path: Path):
    folder = make_feature_writer(tmp_path / "m", family, text={"head_dim": 32})
    as_published(folder)
    counters: Counters = {}
    own, other = (feature_writing(folder, **e) for e in ({}, {"engine": "vllm"}))
    rows = prepared_features(own, images(40))  # more than vLLM is given at once
    expected = open_engine(config_of(own)).predict(rows, {}).to_pylist()
    engine = open_engine(config_of(other, limits=SAME))
    actual = engine.predict(rows, counters).to_pylist()
    engine.close()
    for a, b in zip(expected, actual, strict=True):
        assert b.pop("mean_logprob") == pytest.approx(a.pop("mean_logprob"), abs=1e-4)
        assert a == b
    assert len({row["text"] for row in actual}) > len(actual) // 2
    check = SliceFigures.from_json(counters).reference_check
    assert check is not None
    assert check.num_rows == check.num_agreed == 16
    require_alike(folder, TEXTS[:4])  # texts without any image


def test_a_class_of_images_that_vllm_cannot_run_is_an_error_of_the_job(tmp_path: Path):
    folder = make_feature_writer(tmp_path / "m", "vipllava", text={"head_dim": 32})
    with pytest.raises(JobError, match="vLLM cannot run VipLlavaForConditionalGeneration"):
        open_engine(config_of(feature_writing(folder, engine="vllm")))


def as_published(folder: Path) -> None:
    """Name the tensors of LLaVA's images as its published files do."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    old, new = "vision_tower.", "vision_tower.vision_model."
    named = {k if new in k else k.replace(old, new): v for k, v in tensors.items()}
    safetensors.torch.save_file(named, path, {"format": "pt"})


@pytest.mark.parametrize("how", QUANTISERS)
def test_quantised_weights_write_as_the_float_weights_that_they_stand_for(how: str, tmp_path: Path):
    sizes = {"head_dim": 32, "hidden_size": 64, "intermediate_size": 128}
    folder, twin = (make_writer(tmp_path / name, **sizes) for name in ("quantised", "float"))
    left = quantise(folder, how)
    safetensors.torch.save_file(left, twin / "model.safetensors", {"format": "pt"})
    spec = writing(folder, engine="vllm", precision="bf16")
    assert "not compared with eager fp32: the weights are quantised" in reference_problem(spec)
    rows, expected = predicted(spec, TEXTS), predicted(writing(twin), TEXTS)
    # bf16 turns tokens that are about equally likely, and later ones with them.
    pairs = [(a["text"][:1], b["text"][:1]) for a, b in zip(rows, expected, strict=True)]
    assert sum(a == b for a, b in pairs) >= 18
    assert len({row["text"] for row in rows}) > len(rows) // 2


def test_no_code_of_a_directory_is_run(tmp_path: Path):
    folder = make_feature_writer(tmp_path / "m", "llava", text={"head_dim": 32})
    as_published(folder)
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    autos = ("AutoConfig", "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor",
             "AutoImageProcessor")  # fmt: skip
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config"):
        path = folder / f"{name}.json"
        code = {"auto_map": {auto: "evil.Evil" for auto in autos}}
        path.write_text(json.dumps({**json.loads(path.read_text()), **code}))
    spec = feature_writing(folder, engine="vllm")
    engine = open_engine(config_of(spec))
    rows = engine.predict(prepared_features(spec, images(2)), {}).to_pylist()
    engine.close()
    assert all(row["text"] is not None for row in rows)
    assert not ran.exists()


def test_a_row_that_does_not_fit_is_no_cut_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_writer(tmp_path / "m", head_dim=32, max_position_embeddings=1 << 17)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 1 << 17}))
    monkeypatch.setattr("pipeline.inference.vllm.vllm_model._MOST_CPU_BYTES", 2 << 20)
    texts = ["a film " * 2_000, *TEXTS]
    long, *rest = predicted(writing(folder, engine="vllm"), texts)
    assert (long["error"], long["text"]) == ("out_of_memory", None)
    assert "vLLM has memory for" in long["message"]
    assert all(row["text"] is not None for row in rest)


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
from test_vllm_engine import *
spec = writing(Path({folder!r}), engine="vllm")
engine = open_engine(config_of(spec))
engine._model._vllm.engine_core.shutdown()
engine.predict(prepared(spec, TEXTS), {{}})
print("it went on")
"""


def test_a_vllm_that_has_failed_ends_its_process(tmp_path: Path):
    folder = make_writer(tmp_path / "m", head_dim=32)
    program = PROGRAM.format(paths=[str(Path(__file__).parent)], folder=str(folder))
    done = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=HANG_S,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "vLLM has failed" in done.stderr
    assert "it went on" not in done.stdout


@pytest.mark.parametrize(
    "model",
    [{}, {"prior_corrected": True}, {"choices": tuple(f"number {n}" for n in range(150))}],
    ids=["plain", "prior", "many answers"],
)
def test_scores_of_choices_are_those_of_engine_torch(model: dict[str, Any], tmp_path: Path):
    folder = make_writer(tmp_path / "m", head_dim=32)
    counters: Counters = {}
    texts = [*TEXTS, "a film " * 300]  # cut to its end, as without vLLM
    own = predicted(choosing(folder, top_k=200, **model), texts)
    other = predicted(choosing(folder, engine="vllm", top_k=200, **model), texts, counters,
                      limits=SAME)  # fmt: skip
    for a, b in zip(own, other, strict=True):
        scores = [{entry["label"]: entry["score"] for entry in row["top_k"]} for row in (a, b)]
        assert scores[1] == pytest.approx(scores[0], abs=1e-4)
        names = ("row_id", "num_tokens", "truncated", "error")
        assert [a[name] for name in names] == [b[name] for name in names]
    check = SliceFigures.from_json(counters).reference_check
    assert check is not None
    assert check.num_rows == check.num_agreed == 16
