"""Test that outputs of classes that are no task here are those of the library, by their names."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from PIL import Image
from support.inputs.clips import encoded, tone
from support.inputs.encoded import base_image, png
from support.models.language_models import TEXTS
from support.models.raw_snapshots import (
    BACKBONE,
    ENCODER,
    SIZES,
    image_model,
    make_segmenter,
    make_speakers,
)
from support.models.snapshots import (
    change_json,
    make_snapshot,
    write_model,
    write_tokenizer,
)
from support.runs.checkout import ROOT
from support.runs.jobs import job_over
from transformers.pipelines.document_question_answering import select_starts_ends

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO, IMAGE, TEXT, TEXT_PAIR, text_fields
from pipeline.inference.engines import open_engine
from pipeline.job.model import Model, Output
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits

DPR = {**SIZES, "vocab_size": 120, "max_position_embeddings": 64, "projection_dim": 0}


EXAMPLES = ROOT / "examples" / "postprocess"


def of_texts(name: str, **values: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_tokenizer(folder, "bert")
        cls = getattr(transformers, name)
        write_model(folder, cls, cls.config_class(**values))
        return folder

    return make


CASES: dict[str, tuple[Callable[[Path], Path], str, set[str]]] = {
    # what is published: its maker, the input, its outputs
    "semantic segmentation": (
        make_segmenter, IMAGE, {"logits"}
    ),
    "points of a pose": (
        image_model("VitPoseForPoseEstimation", backbone_config=BACKBONE, num_labels=5,
                  use_simple_decoder=True), IMAGE, {"heatmaps"}
    ),
    "depth": (
        image_model("GLPNForDepthEstimation", **ENCODER), IMAGE, {"predicted_depth"}
    ),
    "voices": (make_speakers, AUDIO, {"embeddings", "logits"}),
    "frames of clips": (
        lambda folder: make_speakers(folder, "ForAudioFrameClassification"), AUDIO, {"logits"}
    ),
    "a question": (of_texts("DPRQuestionEncoder", **DPR), TEXT, {"pooler_output"}),
    "an answer in a text": (
        of_texts("BertForQuestionAnswering", vocab_size=120, max_position_embeddings=64, **SIZES),
        TEXT, {"start_logits", "end_logits"},
    ),
    "vectors of tokens and of the text": (
        lambda folder: make_snapshot(folder, "bert"), TEXT, {"last_hidden_state", "pooler_output"}
    ),
    "a class with a task": (
        lambda folder: make_snapshot(folder, "bert", "sequence", num_labels=3), TEXT, {"logits"}
    ),
}  # fmt: skip
DATA: dict[str, list[Any]] = {
    IMAGE: [png(base_image(1, *size)) for size in ((64, 64), (90, 40), (30, 70))],
    AUDIO: [encoded(tone(length_s, 300), "FLAC") for length_s in (0.5, 1.0, 0.7)],
    TEXT: [*TEXTS[1:4]],
}


def prepared_of(spec: ModelSpec, column: str) -> pa.Table:
    values = DATA[column]
    dtype = pa.large_string() if column == TEXT else pa.large_binary()
    rows = rows_of({column: pa.array(values, dtype)})
    return spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))


def rows_of(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    ids = [str(row) for row in range(len(next(iter(columns.values()))))]
    return pa.table({"row_id": ids, "uri": ids, **columns, **failure_columns([None] * len(ids))})


def predicted(spec: ModelSpec, prepared: pa.Table) -> list[dict[str, Any]]:
    config = PredictorConfig(spec, 2, 0.0, 1, pa.schema([]), batch_tokens=64)
    rows = open_engine(config).predict(prepared, {}).to_pylist()
    assert [row["error"] for row in rows] == [None] * len(rows)
    return rows


def library_outputs(path: Path, spec: ModelSpec, prepared: pa.Table) -> list[dict[str, Any]]:
    """Run the library's class over each row alone, as it was prepared."""
    named = transformers.AutoConfig.from_pretrained(path).architectures[0]
    model = getattr(transformers, named).from_pretrained(path).eval()
    inputs, normalise = spec.input.arrays(prepared), spec.input.normaliser(torch.float32)
    results = []
    for row in range(prepared.num_rows):
        if spec.input.name == "text":
            ids = inputs["input_ids"][row][: inputs["num_tokens"][row]].astype(np.int64)
            given = {"input_ids": torch.from_numpy(ids)[None]}
        else:
            [values] = inputs.values()
            [pixels] = normalise(torch.from_numpy(np.array(values[row]))[None])
            given = {model.main_input_name: pixels if pixels.ndim > values[row].ndim
                     else pixels[None]}  # fmt: skip
        with torch.inference_mode():
            results.append({name: value[0].numpy() for name, value in model(**given).items()
                            if isinstance(value, torch.Tensor)})  # fmt: skip
    return results


def spec_of(path: Path, column: str, **model: Any) -> ModelSpec:
    return resolve_model(job_over(column.strip("_"), Model(path=str(path), **model)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_library(case: str, tmp_path: Path):
    make, column, names = CASES[case]
    path = make(tmp_path / "m")
    spec = spec_of(path, column, task="raw")
    assert {output.name for output in spec.task.outputs} == names
    rows = prepared_of(spec, column)
    actual = predicted(spec, rows)
    for ours, theirs in zip(actual, library_outputs(path, spec, rows), strict=True):
        for name in names:
            assert len(ours[name]) == len(theirs[name])
            np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_class_that_is_no_task_names_the_task_and_its_outputs(tmp_path: Path):
    path = CASES["semantic segmentation"][0](tmp_path)
    with pytest.raises(
        JobError, match=r"write task: raw, whose columns are its outputs logits \(7,"
    ):
        spec_of(path, IMAGE)


def _any_size(folder: Path) -> Path:
    path = image_model("SegformerForSemanticSegmentation", **ENCODER)(folder)
    change_json(path / "preprocessor_config.json", size={"shortest_edge": 64})
    return path


@pytest.mark.parametrize("make", [
    pytest.param(_any_size, id="of images of any size"),
    pytest.param(image_model("SuperPointForKeypointDetection", encoder_hidden_sizes=[8] * 4,
                             decoder_hidden_size=8, descriptor_decoder_dim=8),
                 id="as many as keypoints"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_outputs_whose_shape_depends_on_the_row_are_refused(
    make: Callable[[Path], Path], tmp_path: Path
):
    path = make(tmp_path)
    with pytest.raises(JobError, match="says none of one shape for all rows; give each a name"):
        spec_of(path, IMAGE, task="raw")


def test_places_of_tokens_are_declared_as_such(tmp_path: Path):
    path = make_snapshot(tmp_path / "m", "bert")
    outputs = (Output(name="last_hidden_state", shape=("tokens", 32)),)
    spec = spec_of(path, TEXT, task="raw", outputs=outputs)
    rows = prepared_of(spec, TEXT)
    lengths = [len(row["last_hidden_state"]) for row in predicted(spec, rows)]
    assert lengths == rows.column("num_tokens").to_pylist()
    with pytest.raises(JobError, match="only the first axis may be tokens or frames"):
        spec_of(path, TEXT, task="raw", outputs=(Output(shape=(32, "tokens")),))
    images = make_segmenter(tmp_path / "s")
    with pytest.raises(JobError, match="tokens are of texts; the rows are image"):
        spec_of(images, IMAGE, task="raw", outputs=(Output(name="logits", shape=("tokens", 7)),))
    with pytest.raises(JobError, match="frames are of clips; the rows are image"):
        spec_of(images, IMAGE, task="raw", outputs=(Output(name="logits", shape=("frames", 7)),))


def test_a_class_of_two_inputs_names_the_way_out(tmp_path: Path):
    path = make_snapshot(tmp_path / "m", "clip")
    with pytest.raises(JobError, match=r"needs more .*: pixel_values; model\.factory, with source"):
        spec_of(path, TEXT, task="raw")


PAIRS = [
    ("what is it?", "the cat and the dog sat; it is a film, they said"),
    ("who [SEP] sat", "  Was it \u00e9t\u00e9 ... or 12,5 dogs? "),
    ("", "film"),
    ("a", ""),
]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_answers_are_the_spans_of_the_library(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(EXAMPLES)
    cls = {"bert": "BertForQuestionAnswering", "roberta": "RobertaForQuestionAnswering"}[kind]
    write_tokenizer(tmp_path, kind)
    model = getattr(transformers, cls)
    config = {"vocab_size": 400, "max_position_embeddings": 64, "initializer_range": 1.0}
    write_model(tmp_path, model, model.config_class(**{**SIZES, **config}))
    answers = Model(path=str(tmp_path), task="raw", postprocess="of_library:Answer")
    source = job_over("text", answers).source.model_copy(update={"text_pair_column": "context"})
    job = job_over("text", answers, source=source)
    spec = resolve_model(job, ["of_library"]).fitted(text_fields(has_pair=True))
    columns = dict(zip((TEXT, TEXT_PAIR), zip(*PAIRS, strict=True), strict=True))
    rows = predicted(spec, spec.input.prepare(rows_of(columns), {}, Limits(1 << 30, 1 << 30)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    library = model.from_pretrained(tmp_path).eval()
    for row, (question, context) in zip(rows, PAIRS, strict=True):
        given = tokenizer(question, context, return_tensors="pt")
        of_context = np.array([place == 1 for place in given.sequence_ids()])
        if not of_context.any():
            assert [row[name] for name in ("answer", "start", "score")] == [None] * 3
            continue
        outside = ~of_context
        outside[0] = False
        with torch.inference_mode():
            outputs = library(**given)
        first, last, score, _ = select_starts_ends(
            outputs.start_logits.numpy(), outputs.end_logits.numpy(), outside[None],
            given["attention_mask"].numpy(),
        )  # fmt: skip
        words = [given.token_to_word(int(at[0])) for at in (first, last)]
        start, end = (given.word_to_chars(word, sequence_index=1) for word in words)
        assert row["answer"] == context[start.start : end.end]
        assert (row["start"], row["end"]) == (start.start, end.end)
        assert row["score"] == pytest.approx(float(score[0]), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_voices_of_frames_are_those_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    make_speakers(tmp_path, "ForAudioFrameClassification")
    raw, step = Model(path=str(tmp_path), task="raw"), "of_library:Voices"
    plain = resolve_model(job_over("audio", raw))
    job = job_over("audio", raw.model_copy(update={"postprocess": step}))
    rows = prepared_of(plain, AUDIO)
    actual = predicted(resolve_model(job, ["of_library"]), rows)
    for row, theirs in zip(actual, library_outputs(tmp_path, plain, rows), strict=True):
        scores = torch.sigmoid(torch.from_numpy(theirs["logits"]))
        assert row["voices"] == [torch.nonzero(frame > 0.5).flatten().tolist() for frame in scores]


@pytest.mark.filterwarnings("ignore")
def test_features_of_a_layer_are_the_hidden_states_of_the_library(tmp_path: Path):
    path = make_snapshot(tmp_path / "m", "vit")
    library = transformers.AutoModel.from_pretrained(path).eval()
    [layer, *_] = [name for name, part in library.named_modules() if "Layer" in type(part).__name__]
    features = Output(name="features", shape=(library.embeddings.position_embeddings.shape[1], 32))
    spec = spec_of(path, IMAGE, task="raw", layer=f"model.{layer}", outputs=(features,))
    rows = prepared_of(spec, IMAGE)
    normalise = spec.input.normaliser(torch.float32)
    [pixels] = normalise(torch.from_numpy(np.array(spec.input.arrays(rows)["image"])))
    with torch.inference_mode():
        states = library(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
    actual = [row["features"] for row in predicted(spec, rows)]
    np.testing.assert_allclose(actual, states.numpy(), atol=2e-5, rtol=2e-5)


def recipe(name: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    file = EXAMPLES / "of_library.py"
    from_file = importlib.util.spec_from_file_location("of_library", file)
    assert from_file is not None
    assert from_file.loader is not None
    module = importlib.util.module_from_spec(from_file)
    from_file.loader.exec_module(module)
    step = getattr(module, name)()
    made = step(outputs)
    return {field.name: pa.array(made[field.name], field.type).to_pylist() for field in step.schema}


def test_recipes_give_what_the_library_makes_of_the_outputs():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 7, 8, 8)).astype(np.float32)
    outputs = transformers.utils.ModelOutput(logits=torch.from_numpy(logits))
    maps = transformers.SegformerImageProcessor().post_process_semantic_segmentation(outputs)
    images = [
        Image.open(io.BytesIO(data)) for data in recipe("Segments", {"logits": logits})["segments"]
    ]
    for image, expected in zip(images, maps, strict=True):
        assert np.array_equal(np.asarray(image), expected.numpy())

    depth = random.normal(size=(2, 8, 8)).astype(np.float32)
    made = recipe("Depth", {"predicted_depth": depth})
    levels = np.asarray(Image.open(io.BytesIO(made["depth"][0])))
    assert (levels.min(), levels.max()) == (0, 255)
    assert np.allclose(made["most"], depth.max(axis=(1, 2)))

    heat = np.zeros((1, 2, 9, 5), np.float32)
    heat[0, 0, 8, 4], heat[0, 1, 0, 2] = 0.5, 0.25
    assert recipe("Points", {"heatmaps": heat})["points"] == [[
        {"x": 1.0, "y": 1.0, "score": 0.5}, {"x": 0.5, "y": 0.0, "score": 0.25}
    ]]  # fmt: skip
