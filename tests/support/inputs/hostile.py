"""Hostile model directories: changes to a good one, by name."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.models.snapshots import change_json, write_json

GIB = 1 << 30
ADAPTER, PROCESSOR = "adapter_config.json", "preprocessor_config.json"
TIMM = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ONNX = "m.onnx"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"


class Payload:
    """Writes the marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@dataclass(frozen=True)
class Case:
    """A change to a good directory, and what the one line must say."""

    change: Callable[[Path, Path], None]
    """Takes the directory and the marker that nothing may write."""
    says: str
    """A part of the line; '' where the change must not matter."""
    base: str = "plain"
    """Which directory: `plain` of transformers, `sentence` of sentence-transformers; `onnx` with an
    .onnx file."""


BY_COMMAND = (
    *("auto_map", "a pickle named safetensors", "a header of 100 GB", "a tokenizer of 1 GB"),
    *("a config of 1 GB", "onnx data in ../weights.bin", "a kernel of the hub"),
)
"""Some of each sort, which are run by the real command as well."""
LONG = (
    *("a header of 400,000 tensors", "a header of 100,000 tensors", "a pattern that takes hours"),
    *("256 layers", "endless features"),
)
"""What takes seconds to refuse."""


def _change(file: str, **values: Any) -> Callable[[Path, Path], None]:
    return lambda folder, marker: change_json(folder / file, **values)


def _write(file: str, data: bytes) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(data)

    return change


def _sparse(file: str, size_bytes: int) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        with (folder / file).open("r+b" if (folder / file).exists() else "wb") as opened:
            opened.truncate(size_bytes)

    return change


def _pickled(file: str, *removed: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        for name in removed:
            (folder / name).unlink()
        (folder / file).write_bytes(pickle.dumps(Payload(marker)))

    return change


def _torch_saved(folder: Path, marker: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(2), "more": Payload(marker)}, folder / WEIGHTS)


def _code(file: str, **values: Any) -> Callable[[Path, Path], None]:
    """Name a module of the directory, which would write the marker, in a JSON file."""

    def change(folder: Path, marker: Path) -> None:
        (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: ...\n")
        change_json(folder / file, **values)

    return change


def _link(file: str, target: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return change


def _fifo(file: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return change


def _linked_folder(folder: Path, marker: Path) -> None:
    (folder / "1_Pooling").rename(folder.parent / "pooling")
    (folder / "1_Pooling").symlink_to(folder.parent / "pooling")


def _header(length: int | None, text: bytes, data: bytes = b"") -> Callable[[Path, Path], None]:
    length = len(text) if length is None else length
    return _write(WEIGHTS, struct.pack("<Q", length) + text + data)


def _tensors(*entries: tuple[str, list[int], list[int]], data: int = 64) -> Any:
    """A file whose header says dtype F32, a shape and the offsets of each tensor."""
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        for name, shape, offsets in entries
    }
    return _header(None, json.dumps(header).encode(), bytes(data))


def _many(num_tensors: int) -> Callable[[Path, Path], None]:
    """A header of empty tensors, so long that it is made only where it is used."""

    def change(folder: Path, marker: Path) -> None:
        entries = ((f"t{index:06}", [0], [0, 0]) for index in range(num_tensors))
        _tensors(*entries, data=0)(folder, marker)

    return change


def _indexed(**weight_map: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        write_json(folder / INDEX, {"weight_map": weight_map})

    return change


def _modules(path: str, module_type: str = "sentence_transformers.models.Pooling") -> Any:
    def change(folder: Path, marker: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[1] |= {"path": path, "type": module_type}
        write_json(folder / "modules.json", modules)

    return change


def _pattern(pattern: str, prompt: str = "a" * 40 + "!") -> Callable[[Path, Path], None]:
    """A prompt of the directory over which a pattern of its tokenizer backtracks without end."""

    def change(folder: Path, marker: Path) -> None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        change_json(folder / TOKENIZER, pre_tokenizer={**split, "invert": False})
        _prompt(prompt)(folder, marker)

    return change


def _prompt(prompt: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        values = {"prompts": {"query": prompt}, "default_prompt_name": "query"}
        write_json(folder / "config_sentence_transformers.json", values)
        change_json(folder / "1_Pooling" / "config.json", include_prompt=False)

    return change


def _custom_generate(folder: Path, marker: Path) -> None:
    (folder / "custom_generate").mkdir()
    program = f"open({str(marker)!r}, 'w')\ndef generate(*args, **options): ...\n"
    (folder / "custom_generate" / "generate.py").write_text(program)
    values = {"custom_generate": "own/generate", "auto_map": {"AutoModel": "modeling_own.Own"}}
    change_json(folder / "generation_config.json", **values)


def _onnx_apart(**where: str) -> Callable[[Path, Path], None]:
    """Say of a tensor of the file that it lies elsewhere."""

    def change(folder: Path, marker: Path) -> None:
        from support.models import onnx_files

        model = onnx_files.place_apart(onnx_files.text_model(), **where)
        onnx_files.save(model, folder / ONNX)

    return change


def _onnx_linked(folder: Path, marker: Path) -> None:
    from support.models import onnx_files

    onnx_files.save_apart(onnx_files.text_model(), folder / ONNX)
    (folder / "weights.bin").rename(folder.parent / "weights.bin")
    (folder / "weights.bin").symlink_to(folder.parent / "weights.bin")


def _onnx_custom(folder: Path, marker: Path) -> None:
    from onnx import helper

    from support.models import onnx_files

    model = onnx_files.text_model()
    model.graph.node.append(helper.make_node("Run", ["sentence"], ["more"], domain="my.ops"))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    onnx_files.save(model, folder / ONNX)


def _deep(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


_CUT = "is damaged, cut off or no safetensors: "
_NO_TOKENIZER = "makes no tokenizer of tokenizer.json"
_IS_PICKLE = "is a pickle, which can run code when it is loaded"
_PICKLES = ("pytorch_model.bin", "model.pt", "model.pth", "w.pkl", "w.pickle", "w.joblib")
_ENDLESS = "[" * 100_000

HOSTILE: Mapping[str, Case] = {
    # ---- code of the directory
    "auto_map": Case(_code(CONFIG, auto_map={"AutoModel": "modeling_own.Own"}), ""),
    "auto_map of the tokenizer": Case(
        _code(TOKENIZER_CONFIG, auto_map={"AutoTokenizer": ["modeling_own.Own", None]}),
        "",
    ),
    "auto_map inside": Case(
        _code(CONFIG, text_config={"auto_map": {"AutoConfig": "modeling_own.Own"}}), ""
    ),
    "a type of its own": Case(
        _code(CONFIG, model_type="own", architectures=["Own"]), 'model_type is "own"'
    ),
    "a class of its own": Case(_code(CONFIG, architectures=["modeling_own.Own"]), "'modeling_own"),
    "a function of the library": Case(_change(CONFIG, architectures=["pipeline"]), "'pipeline'"),
    "a kernel of the hub": Case(_change(CONFIG, attn_implementation="own/kernel"), ""),
    "a kernel of the hub, privately": Case(
        _change(CONFIG, _attn_implementation="own/kernel", _attn_implementation_internal="a/b"), ""
    ),
    "a tokenizer class of its own": Case(
        _code(TOKENIZER_CONFIG, tokenizer_class="modeling_own.Own"), ""
    ),
    "a module of its own": Case(
        _modules("1_Pooling", "modeling_own.Own"), 'class "modeling_own.Own"', "sentence"
    ),
    "a function as a module": Case(
        _modules("1_Pooling", "os.system"), 'class "os.system"', "sentence"
    ),
    "a function as an activation": Case(
        _change("2_Dense/config.json", activation_function="os.system"), "", "sentence"
    ),
    # ---- what a library would run, read or fetch: see BY_LIBRARY
    "a kernel of the hub inside": Case(
        _change(CONFIG, text_config={"attn_implementation": "own/kernel"}), ""
    ),
    "experts of the hub": Case(_change(CONFIG, _experts_implementation="own/kernel"), ""),
    "a function of torch as activation": Case(
        _change(CONFIG, sentence_transformers={"activation_fn": "torch.hub.get_dir"}),
        'activation_fn is "torch.hub.get_dir"',
    ),
    "an old function of torch as activation": Case(
        _change(CONFIG, sbert_ce_default_activation_function="torch.cuda.init"),
        'activation_fn is "torch.cuda.init"',
    ),
    "an adapter": Case(
        _write(ADAPTER, b'{"base_model_name_or_path": "own/base", "peft_type": "LORA"}'),
        "is of an adapter",
    ),
    "a place of its own": Case(_change(CONFIG, _name_or_path="own/model"), ""),
    "a dtype that is a function": Case(
        _change(CONFIG, dtype="hub.load"), "no attribute 'hub.load'"
    ),
    "a config of timm's wrapper": Case(
        _change(
            *(CONFIG,),
            model_type="timm_wrapper",
            architectures=["TimmWrapperForImageClassification"],
            architecture="hf-hub:own/model",
            model_args={"checkpoint_path": "/etc/passwd"},
        ),
        "config.json",
    ),
    "a backbone of the hub": Case(
        _change(
            *(CONFIG,),
            model_type="detr",
            architectures=["DetrForObjectDetection"],
            backbone="own/backbone",
            use_timm_backbone=False,
        ),
        "config.json",
    ),
    "a tokenizer of other files": Case(
        _change(
            *(TOKENIZER_CONFIG,),
            tokenizer_file="/etc/passwd",
            vocab_file="/etc/passwd",
            name_or_path="own/model",
            added_tokens_file="/etc/passwd",
        ),
        "",
    ),
    "a tokenizer of Mistral": Case(
        _change(CONFIG, model_type="mistral", architectures=["MistralForSequenceClassification"]),
        "do not fit",
    ),
    "a processor of its own": Case(
        _write(
            PROCESSOR, b'{"image_processor_type": "own.P", "auto_map": {"AutoProcessor": "a.B"}}'
        ),
        "",
    ),
    "an encoder of another place": Case(
        _write(
            "sentence_bert_config.json",
            b'{"model_name_or_path": "own/model", "model_args": {"trust_remote_code": true}}',
        ),
        "multiple values for keyword argument",
        "sentence",
    ),
    "a function of torch as a module": Case(
        _modules("1_Pooling", "torch.hub.load"), 'class "torch.hub.load"', "sentence"
    ),
    "a function of torch in a layer": Case(
        _change("2_Dense/config.json", activation_function="torch.hub.get_dir"),
        "torch.hub.get_dir",
        "sentence",
    ),
    "a way to write of its own": Case(_custom_generate, "", "writer"),
    "a template that leads elsewhere": Case(
        _write("chat_template.jinja", b"{% include '/etc/passwd' %}"), "", "writer"
    ),
    "an architecture of the hub": Case(
        _change(CONFIG, architecture="hf-hub:own/model"), "architecture", "timm"
    ),
    "an architecture in a folder": Case(
        _change(CONFIG, architecture="local-dir:/etc"), "architecture", "timm"
    ),
    "a checkpoint elsewhere": Case(
        _change(CONFIG, model_args={"checkpoint_path": "/etc/passwd"}),
        "has checkpoint_path",
        "timm",
    ),
    "weights elsewhere": Case(
        _change(CONFIG, pretrained_cfg={**TIMM, "file": "/etc/passwd", "url": "http://127.0.0.1"}),
        "",
        "timm",
    ),
    "weights of the hub": Case(
        _change(CONFIG, pretrained_cfg={**TIMM, "hf_hub_id": "own/model", "source": "hf-hub"}),
        "",
        "timm",
    ),
    "an image processor of its own": Case(
        _change(PROCESSOR, image_processor_type="own.Processor"),
        "Unrecognized image processor",
        "image",
    ),
    "code of an image processor": Case(
        _code(PROCESSOR, auto_map={"AutoImageProcessor": "modeling_own.Own"}), "", "image"
    ),
    "a feature extractor of its own": Case(
        _change(PROCESSOR, feature_extractor_type="own.E"),
        "Unrecognized feature extractor",
        "audio",
    ),
    "endless features": Case(_change(PROCESSOR, num_mel_bins=10**9), "MemoryError", "audio"),
    "code of a feature extractor": Case(
        _code(PROCESSOR, auto_map={"AutoFeatureExtractor": "modeling_own.Own"}), "", "audio"
    ),
    # ---- pickles
    **{f"{name} alone": Case(_pickled(name, WEIGHTS), _IS_PICKLE) for name in _PICKLES},
    "last.ckpt alone": Case(_pickled("last.ckpt", WEIGHTS), _IS_PICKLE),
    "a pickle named safetensors": Case(_pickled(WEIGHTS), _CUT),
    "torch.save named safetensors": Case(_torch_saved, _CUT),
    "a pickle beside the weights": Case(_pickled("pytorch_model.bin"), ""),
    "a pickle of arguments": Case(_pickled("training_args.bin"), ""),
    "a pickle as config": Case(_pickled(CONFIG), "config.json is no JSON"),
    "a pickle as tokenizer": Case(_pickled(TOKENIZER), _NO_TOKENIZER),
    "a pickle as tokenizer_config": Case(_pickled(TOKENIZER_CONFIG), "is no JSON"),
    # ---- safetensors
    "a header of 100 GB": Case(_header(100 * GIB, b"{}"), "has a header of 107374182400 bytes"),
    "a header longer than the file": Case(_header(1 << 20, b"{}"), _CUT),
    "a header without end": Case(_header(None, b'{"a":' + _ENDLESS.encode()), _CUT),
    "a header of numbers": Case(_header(None, b'{"a": 1}'), _CUT),
    "offsets beyond the file": Case(_tensors(("a", [1 << 28], [0, 1 << 30])), _CUT),
    "negative offsets": Case(_tensors(("a", [4], [-16, 0])), _CUT),
    "offsets that overlap": Case(
        _tensors(("a", [8], [0, 32]), ("b", [8], [16, 48]), data=48), _CUT
    ),
    "offsets with a hole": Case(_tensors(("a", [4], [0, 16]), ("b", [4], [32, 48]), data=48), _CUT),
    "an absurd shape": Case(_tensors(("a", [10**9, 10**9], [0, 64])), _CUT),
    "a shape that overflows": Case(_tensors(("a", [2**40, 2**40], [0, 64])), _CUT),
    "an empty absurd shape": Case(_tensors(("a", [0, 2**50], [0, 0]), data=0), "do not fit"),
    "an unknown dtype": Case(
        _header(None, b'{"a": {"dtype": "OS", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        _CUT,
    ),
    "a header of 400,000 tensors": Case(_many(400_000), "bytes, at most 8388608 can be"),
    "a header of 100,000 tensors": Case(_many(100_000), "do not fit"),
    "no weights at all": Case(_write(WEIGHTS, b""), "is empty (0 bytes)"),
    "a web page as weights": Case(_write(WEIGHTS, b"<!DOCTYPE html>"), "is a web page"),
    "a pointer as weights": Case(
        _write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1"), "is a pointer of Git LFS"
    ),
    # ---- tokenizers
    "a tokenizer of 1 GB": Case(_sparse(TOKENIZER, GIB), "has 1073741824 bytes, at most"),
    "a tokenizer without end": Case(_write(TOKENIZER, _ENDLESS.encode()), _NO_TOKENIZER),
    "a pattern without end": Case(_pattern(r"(a+)+$"), "retry-limit-in-match over", "sentence"),
    "a pattern that takes hours": Case(
        _pattern(r"a*a*[bc]", ("a" * 4000 + "!") * 50 + "b"), "it takes too long", "sentence"
    ),
    "a pattern that is none": Case(_pattern(r"(a"), "makes no model of this directory", "sentence"),
    # ---- configs
    "a config of 1 GB": Case(_sparse(CONFIG, GIB), "has 1073741824 bytes, at most 1048576"),
    "an index of 1 GB": Case(_sparse(INDEX, GIB), "has 1073741824 bytes, at most 16777216"),
    "modules of 1 GB": Case(_sparse("modules.json", GIB), "has 1073741824 bytes", "sentence"),
    "a config without end": Case(_write(CONFIG, _ENDLESS.encode()), "config.json is no JSON"),
    "a deep config": Case(_write(CONFIG, _deep(100_000)), "config.json is no JSON"),
    "a config of a list": Case(_write(CONFIG, b"[1]"), "holds a list, expected an object"),
    "a config that is no text": Case(_write(CONFIG, b"\xff\xfe\x00"), "config.json is no JSON"),
    "a tokenizer_config of a list": Case(_write(TOKENIZER_CONFIG, b"[1]"), _NO_TOKENIZER),
    "modules of an object": Case(_write("modules.json", b"{}"), "modules is {}, expected a valid"),
    "modules of numbers": Case(_write("modules.json", b"[3]"), "modules is 3, expected a valid"),
    "a number of 5,000 digits": Case(
        _write(CONFIG, b'{"hidden_size": ' + b"9" * 5000 + b"}"), "config.json is no JSON"
    ),
    "hidden_size 10**9": Case(_change(CONFIG, hidden_size=10**9), "config.json"),
    "hidden_size 2**62": Case(_change(CONFIG, hidden_size=2**62), "hidden_size is"),
    "10**6 layers": Case(_change(CONFIG, num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    "256 layers": Case(_change(CONFIG, num_hidden_layers=256), "config.json"),
    "10**9 labels": Case(_change(CONFIG, num_labels=10**9), "num_labels is 1000000000"),
    "a size as text": Case(_change(CONFIG, hidden_size="32; import os"), "config.json"),
    "no architectures": Case(_change(CONFIG, architectures=[]), "architectures is []"),
    "architectures as numbers": Case(_change(CONFIG, architectures=[1]), "architectures is [1]"),
    "quantised": Case(
        _change(CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "has quantization_config",
    ),
    "a dense layer of 10**12": Case(
        _change("2_Dense/config.json", in_features=10**6, out_features=10**6),
        "makes no model of this directory",
        "sentence",
    ),
    "a limit below zero": Case(
        _change(TOKENIZER_CONFIG, model_max_length=-5), "tokenizer.json: fails over texts"
    ),
    "a prompt of numbers": Case(
        _write("config_sentence_transformers.json", b'{"prompts": {"a": 1}}'), "", "sentence"
    ),
    # ---- links and other files
    "config leads to /etc/passwd": Case(_link(CONFIG, "/etc/passwd"), "config.json is no JSON"),
    "weights lead to /etc/passwd": Case(_link(WEIGHTS, "/etc/passwd"), _CUT),
    "tokenizer leads to /etc/passwd": Case(_link(TOKENIZER, "/etc/passwd"), _NO_TOKENIZER),
    "config leads to a folder": Case(_link(CONFIG, "/etc"), "config.json"),
    "weights lead to a folder": Case(_link(WEIGHTS, "/etc"), "model.safetensors"),
    "config leads nowhere": Case(_link(CONFIG, "/nowhere/at/all"), "config.json"),
    "weights lead nowhere": Case(_link(WEIGHTS, "/nowhere/at/all"), "model.safetensors"),
    "config leads to itself": Case(_link(CONFIG, CONFIG), "symbolic links form a loop"),
    "weights lead to themselves": Case(_link(WEIGHTS, WEIGHTS), "symbolic links form a loop"),
    "config leads to /dev/zero": Case(_link(CONFIG, "/dev/zero"), "config.json"),
    "weights lead to /dev/zero": Case(_link(WEIGHTS, "/dev/zero"), "model.safetensors"),
    "config is a pipe": Case(_fifo(CONFIG), "config.json"),
    "weights are a pipe": Case(_fifo(WEIGHTS), "model.safetensors"),
    "a module leads to a folder elsewhere": Case(
        _linked_folder, "is a link to a folder", "sentence"
    ),
    # ---- paths
    **{
        f"module path {path}": Case(_modules(path), "is no folder of the directory", "sentence")
        for path in ("../pooling", "1_Pooling/../../x", "/etc", "..\\x", "a\0b")
    },
    **{
        f"weight map to {path}": Case(_indexed(a=path), "expected a .safetensors file beside it")
        for path in ("../w.safetensors", "/etc/passwd", "sub/w.safetensors", "w.bin", "..")
    },
    "weight map to nothing": Case(_indexed(a="w.safetensors"), "w.safetensors is missing"),
    "weight map to other tensors": Case(_indexed(a="model-00001-of-00001.safetensors"), ""),
    # ---- .onnx files
    **{
        f"onnx data in {place}": Case(
            _onnx_apart(location=place), "outside the directory of the file itself", "onnx"
        )
        for place in ("../weights.bin", "/etc/passwd", "a/../../weights.bin")
    },
    "onnx data that is not there": Case(
        _onnx_apart(location="none.bin"), "there is no such file beside it", "onnx"
    ),
    "onnx data of 1 TB": Case(
        _onnx_apart(location=TOKENIZER, offset="0", length=str(1 << 40)), "m.onnx", "onnx"
    ),
    "onnx data behind a link": Case(_onnx_linked, "which is a link", "onnx"),
    "an operator of its own": Case(_onnx_custom, "my.ops:Run(-1) is not a registered", "onnx"),
    "a pickle named onnx": Case(_pickled(ONNX), "is not an ONNX model", "onnx"),
    "an onnx file of 3 GB": Case(_sparse(ONNX, 3 * GIB), "more than protobuf reads", "onnx"),
    "an onnx file that leads to /etc/passwd": Case(
        _link(ONNX, "/etc/passwd"), "is not an ONNX model", "onnx"
    ),
}
_NAMES = [*HOSTILE]
BY_LIBRARY = (
    *("auto_map inside", "a kernel of the hub", "a kernel of the hub, privately"),
    *("a tokenizer class of its own", "a module of its own", "a function as a module"),
    *("a function as an activation", "a pickle beside the weights", "a pickle of arguments"),
    *_NAMES[_NAMES.index("a kernel of the hub inside") : _NAMES.index("pytorch_model.bin alone")],
    *("tokenizer leads to /etc/passwd", "weight map to /etc/passwd", "onnx data in /etc/passwd"),
)
"""Those of each way by which a library runs code, reads other files or goes to the network."""
