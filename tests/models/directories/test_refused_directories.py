"""Test that directories and files are refused in one line, with a way out, without their memory."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models.snapshots import change_json, make_snapshot, make_timm, write_json

from pipeline.core.errors import JobError
from pipeline.models.directories.opening import build_module, open_facts, read_facts
from pipeline.models.directories.snapshot import open_directory
from pipeline.models.tasks.base import TaskSpec

WEIGHTS = "model.safetensors"
XGBOOST, LIGHTGBM = b'{"learner":{"attributes":{}},"version":[3,2,0]}', b"tree\nversion=v4\n"
UBJSON = b"{L" + struct.pack(">q", 7) + b"\x07learner{"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {
        "sequence": make_snapshot(folder / "a", "bert", "sequence", num_labels=3),
        "sentence": make_snapshot(folder / "b", "bert", pooling="mean", dense=8),
        "timm": make_timm(folder / "c", "test_resnet", num_classes=2),
    }


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a directory, for the test to change."""
    return lambda name="sequence": Path(shutil.copytree(folders[name], tmp_path / "m"))


def refusal(path: Path | str) -> str:
    """Return why a directory is refused: when it is opened, otherwise when it is read."""
    with pytest.raises(JobError) as caught:
        read_facts(open_directory(str(path))[1])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    return message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("traced.torchscript", "is a TorchScript archive"),
        ("model.ts", "is a TorchScript archive"),
        ("exported.pt2", "is an exported program"),
        ("tf_model.h5", "is a Keras model"),
        ("model.keras", "is a Keras model"),
        ("flax_model.msgpack", "is a Flax model"),
        ("model-q4.gguf", "is GGUF"),
        ("MLmodel", "is of an MLflow model"),
        ("saved_model.pb", "is a TensorFlow SavedModel"),
        ("adapter_config.json", "is of an adapter (LoRA)"),
        ("model_index.json", "is of a diffusers pipeline"),
        ("gliner_config.json", "is of GLiNER"),
        ("config.cfg", "is of a spaCy pipeline"),
        ("model.onnx", "name the file itself in model.path"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_other_formats_are_refused_by_name(name, words, has_config, copy):
    path = copy()
    (path / WEIGHTS).unlink()
    if not has_config:
        (path / "config.json").unlink()
    (path / name).write_bytes(b"{}")
    message = refusal(path)
    assert name in message
    assert words in message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("vocab.txt",), "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"),
        ((), "neither tokenizer.json"),
    ],
)
def test_a_missing_tokenizer_is_reported_with_the_way_to_make_one(names, words, copy):
    path = copy()
    (path / "tokenizer.json").unlink()
    for name in names:
        (path / name).write_text("{}")
    assert words in refusal(path)


def test_a_special_token_without_its_text_would_shift_the_words_of_all_texts(copy):
    path = copy()
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["post_processor"]["special_tokens"]["[SEP]"]["tokens"] = []
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "gives the special token [SEP] 1 ids and 0 tokens, expected as many" in refusal(path)


@pytest.mark.parametrize("name", ["sequence", "sentence", "timm"])
def test_an_adapter_beside_the_weights_is_refused_for_it_would_not_be_applied(name, copy):
    path = copy(name)
    (path / "adapter_config.json").write_text("{}")
    message = refusal(path)
    assert "adapter_config.json is of an adapter (LoRA) beside the weights" in message
    assert "model.merge_and_unload().save_pretrained(NEW)" in message


def test_what_is_no_directory_of_a_model_says_what_it_has(tmp_path, copy):
    assert "no such directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "there is no file in it" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("?")
    assert "no config.json; expected" in refusal(tmp_path / "empty")
    assert "it has notes.txt" in refusal(tmp_path / "empty")
    assert "is a file, expected the directory" in refusal(tmp_path / "empty" / "notes.txt")
    path = copy("sentence")
    (path / "2_Dense" / WEIGHTS).rename(path / "2_Dense" / "pytorch_model.bin")
    assert "2_Dense: pytorch_model.bin is a pickle" in refusal(path).replace("2_Dense/", "2_Dense")


CONFIGS: Mapping[str, list[tuple[dict[str, Any], str]]] = {
    "sequence": [
        ({"model_type": "no-such"}, 'model_type is "no-such", which the installed transformers'),
        ({"model_type": "no-such", "transformers_version": "9.9.1"}, 'made with "9.9.1"'),
        ({"model_type": None}, "model_type is null"),
        ({"model_type": "roberta"}, "architectures names 'BertForSequenceClassification'"),
        ({"architectures": ["os"]}, "architectures names 'os', which is no model of type bert"),
        ({"architectures": ["BertForQuestionAnswering"]}, "do not fit BertForQuestionAnswering"),
        ({"architectures": ["BertForMultipleChoice"]}, "do not fit BertForMultipleChoice"),
        ({"architectures": ["HF_ColBERT"]}, "HF_ColBERT needs tensor linear.weight"),
        ({"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}, "is never run"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}, "of a directory is never run"),
        ({"quantization_config": {"quant_method": "fp8"}}, "has quantization_config: quantised"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "has quantization_config: quant"),
        ({"text_config": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path: names other files"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights: names other files"),
        ({"backbone": "someone/model"}, 'backbone is "someone/model", expected the name of an arc'),
        ({"model_type": ["bert"]}, "model_type is"),
        ({"vocab_size": 10**11}, "numbers, the safetensors hold"),
        ({"max_position_embeddings": 10**11}, "numbers, the safetensors hold"),
        ({"intermediate_size": 10**30}, "intermediate_size is 1000000"),
        ({"hidden_act": "os.system"}, "KeyError"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label must name the outputs 0 to 2"),
        ({"problem_type": "guess"}, 'problem_type is "guess"'),
        ({"num_hidden_layers": 3}, "tensors 16 missing (bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "16 unexpected (bert.encoder.layer.1"),
        ({"intermediate_size": 65}, "of another shape (bert.encoder.layer.0.intermediate"),
        ({"sbert_ce_default_activation_function": "os.system"}, 'activation_fn is "os.system"'),
        (
            {"sentence_transformers": {"activation_fn": "torch.load"}},
            'activation_fn is "torch.load"',
        ),
    ],
    "timm": [
        ({"architecture": "hf-hub:someone/model"}, "expected the name of an architecture that the"),
        ({"architecture": "local-dir:/tmp"}, "expected the name of an architecture that the"),
        ({"architecture": 3}, "architecture is 3, expected a valid string"),
        ({"model_args": {"checkpoint_path": "w.pth"}}, "has checkpoint_path: names other files"),
        ({"model_args": {"pretrained_cfg": {}}}, "model_args has pretrained_cfg"),
        ({"model_args": {"no_such": [{"file": "/etc/passwd"}]}}, "model_args has no_such"),
        ({"model_args": {"no_such": 3}}, "builds no test_resnet"),
        ({"model_args": {"stem_width": 100_000}}, "numbers, the safetensors hold"),
        ({"num_classes": 3}, "the weights are for 2 outputs and the model is built for 3"),
        ({"label_names": ["a"]}, 'label_names is ["a"], list should have at least 2 items'),
    ],
}
"""Kind of directory -> changes of its config.json, and what is said."""
_OLD = "sentence_transformers.models"
SETTINGS: list[tuple[str, dict[Any, Any], str]] = [
    ("1_Pooling/config.json", {"pooling_mode": "median"}, "Invalid pooling mode: 'median'"),
    ("2_Dense/config.json", {"in_features": 31}, "shape torch.Size([8, 32])"),
    ("2_Dense/config.json", {"out_features": None}, "TypeError"),
    ("2_Dense/config.json", {"use_residual": True}, 'Missing key(s) in state_dict: "residual.w'),
    ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "behind Pooling, which is"),
    (
        "sentence_bert_config.json",
        {
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "token_embeddings",
        },
        'the output of texts is {"method": "forward", "method_output_name": "logits"}',
    ),
    ("sentence_bert_config.json", {"config_args": {"hidden_act": "silu"}}, "has hidden_act"),
    ("sentence_bert_config.json", {"model_args": {"num_labels": 3}}, "has num_labels"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, 'task is "fill-mask"'),
    (
        "config_sentence_transformers.json",
        {"model_type": "CrossEncoder"},
        "has Pooling, Dense behind Transformer of a cross-encoder",
    ),
    (
        "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": "torch.load"},
        'activation_fn is "torch.load"',
    ),
    ("modules.json", {0: {"type": f"{_OLD}.CLIPModel"}}, "has CLIPModel, Pooling, Dense; expected"),
    ("modules.json", {2: {"type": "os.path"}}, 'names the class "os.path"'),
    ("modules.json", {2: {"type": f"{_OLD}.WeightedLayerPooling"}}, "WeightedLayerPooling"),
    ("modules.json", {1: {"type": []}}, "names the class []"),
    ("modules.json", {1: {"type": {"a": 1}}}, "names the class {"),
    ("modules.json", {0: {"path": [""]}}, 'path [""] is no folder'),
    ("modules.json", {1: {"path": 3}}, "path 3 is no folder of the directory"),
    ("modules.json", {1: {"path": "elsewhere"}}, "elsewhere/config.json is missing"),
    ("modules.json", {1: {"type": f"{_OLD}.Normalize"}}, "before Pooling, which is not supported"),
    ("modules.json", {1: {"type": f"{_OLD}.Transformer"}}, "expected one Transformer, first"),
]
"""File of a directory of sentence-transformers -> its changes, and what is said."""
REFUSED = [
    *((name, "config.json", *row) for name, rows in CONFIGS.items() for row in rows),
    *(("sentence", *row) for row in SETTINGS),
]


@pytest.mark.parametrize(("name", "file", "changes", "words"), REFUSED)
def test_a_document_that_cannot_be_is_refused_without_its_memory(name, file, changes, words, copy):
    path = copy(name)
    document = json.loads((path / file).read_text()) if (path / file).exists() else {}
    for key, value in changes.items():
        is_part = isinstance(document, list) or key == "pretrained_cfg"
        document[key] = {**document[key], **value} if is_part else value
    write_json(path / file, document)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refusal(path)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 1 << 20  # libraries are imported by the first; no config takes a GiB


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)


def test_tensors_that_do_not_fit_are_refused_by_name(copy):
    path = copy()
    rewrite(path, lambda tensors: tensors.pop("classifier.bias"))
    assert "do not fit BertForSequenceClassification" in refusal(path)
    assert "tensors 1 missing (classifier.bias)" in refusal(path)
    rewrite(path, lambda tensors: tensors.update({"classifier.bias": torch.zeros(3)}))
    rewrite(path, lambda tensors: tensors.update({"extra.weight": torch.zeros(3)}))
    assert "tensors 1 unexpected (extra.weight)" in refusal(path)
    rewrite(path, lambda tensors: tensors.pop("extra.weight"))
    rewrite(path, lambda tensors: tensors.update({"classifier.bias": torch.zeros(4)}))
    assert "1 of another shape (classifier.bias is (4,), not (3,))" in refusal(path)
    rewrite(path, lambda tensors: tensors.update({"classifier.bias": torch.zeros(3).char()}))
    assert "tensors of type I8 (classifier.bias): quantised weights are not supported" in refusal(
        path
    )


def test_a_head_that_is_not_in_the_files_is_not_made_up(copy):
    path = copy("sentence")
    (path / "modules.json").unlink()
    change_json(path / "config.json", architectures=["BertForSequenceClassification"])
    assert "missing (bert.pooler" in refusal(path) or "missing (classifier" in refusal(path)


def test_a_dense_layer_must_fit(copy):
    path = copy("sentence")
    facts = read_facts(path)
    save_file({"linear.weight": torch.zeros(8, 32)}, path / "2_Dense" / WEIGHTS)
    with pytest.raises(JobError, match=r"1 of 2 tensors missing \(linear\.bias\)"):
        build_module(path, facts, TaskSpec("embed"))


def test_a_task_that_the_outputs_do_not_serve_is_refused(folders):
    facts = read_facts(folders["sequence"])
    with pytest.raises(JobError, match="serves classify, multilabel"):
        build_module(folders["sequence"], facts, TaskSpec("embed"))


def test_a_pooling_that_the_model_has_no_outputs_for_is_refused(tmp_path):
    path = make_snapshot(tmp_path / "m", "vit")
    with pytest.raises(JobError, match=r"model\.pooling = 'lasttoken': expected one of"):
        open_facts(str(path), {}, "image", "lasttoken")


class Marker:
    """A pickle of this leaves a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["lr.joblib", "lr.pkl", "lr.pickle", "lr.PKL", "model"])
def test_a_pickle_names_the_export_to_onnx(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(pickle.dumps(Marker(tmp_path / "ran")))
    assert refusal(str(tmp_path / name)) == (
        f"model.path = {tmp_path}/{name}: {name} is a pickle, which can run code: export it to "
        "ONNX (skl2onnx.to_onnx) and give the .onnx file"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("xgb.json", XGBOOST, "convert_xgboost("),
        ("xgb.json", b'{"version":[3,2,0],"learner":{', "convert_xgboost("),
        ("xgb.ubj", UBJSON, "convert_xgboost("),
        ("xgb.ubj", b"", "convert_xgboost("),
        ("lgb.txt", LIGHTGBM, "convert_lightgbm("),
        ("lgb.txt", LIGHTGBM.replace(b"\n", b"\r\n"), "convert_lightgbm("),
        ("cat.cbm", b"CBM1", 'model.save_model("model.onnx", format="onnx")'),
        ("w.safetensors", b"", "name the folder that has config.json"),
        ("w.pth", b"\x80\x02}q\x00.", "model.factory with model.weights"),
        ("config.json", b"{}", "expected the directory of a model, or an .onnx file"),
        ("model-q4.gguf", b"GGUF", "GGUF, which is not supported"),
        ("notes.txt", b"tree", "expected the directory of a model, or an .onnx file"),
    ],
)
def test_each_kind_of_file_names_its_way(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    message = refusal(str(tmp_path / name))
    assert message.startswith(f"model.path = {tmp_path}/{name}: {name} is ")
    assert words in message


def test_a_folder_may_have_such_a_name(tmp_path: Path):
    (tmp_path / "lr.joblib").mkdir()
    assert "no such directory, or there is no file in it" in refusal(str(tmp_path / "lr.joblib"))


def test_a_name_of_the_hub_says_how_to_copy_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    wanted = "pipeline pull hf://google/vit-base-patch16-224@REVISION models/vit-base-patch16-224"
    assert wanted in refusal("google/vit-base-patch16-224")
    (tmp_path / "google").mkdir()
    assert "pull" not in refusal("google/vit-base-patch16-224")
    for path in ("./google/vit", f"{tmp_path}/none", "a/b/c", "none", "../x/y"):
        assert "pull" not in refusal(path)


@pytest.mark.parametrize("uri", ["hf://org/name", "hf://org/name/", "hf://org/name@main"])
def test_a_run_downloads_nothing_from_the_hub(uri: str):
    revision = "main" if "@" in uri else "REVISION"
    assert refusal(uri) == (
        f"model.path = {uri}: a run downloads nothing: pipeline pull hf://org/name@{revision} DEST "
        "first, then model.path: DEST"
    )
