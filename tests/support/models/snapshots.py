"""Small model directories with random weights, as the libraries write them.

`make_snapshot(folder, "bert", head="sequence")` writes a snapshot of transformers;
`pooling="mean"` makes a sentence-transformers directory of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEXTS = ("the cat sat on the mat", "a dog", "rain in the city, and the long way home by the river")
PAIRS = (("the cat", "a dog sat"), ("rain", "the long way home"), ("a", "b"))
WORDS = (
    *("the", "cat", "sat", "on", "mat", "a", "dog", "rain", "in", "city", "and", "long"),
    *("way", "home", "by", "river", "query"),
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.:"
MAX_TOKENS = 64
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
_VISION = {**_SIZES, "image_size": 32, "patch_size": 8}

TEXT_FAMILIES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    # family: prefix of the library's classes, tokens in the manner of, configuration
    "bert": ("Bert", "bert", {**_SIZES, "max_position_embeddings": MAX_TOKENS}),
    "roberta": ("Roberta", "roberta", {**_SIZES, **_ROBERTA, "max_position_embeddings": 66}),
    "xlm-roberta": ("XLMRoberta", "roberta", {**_SIZES, **_ROBERTA, "max_position_embeddings": 66}),
    "distilbert": (
        "DistilBert",
        "bert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    ),
    "deberta-v2": (
        "DebertaV2",
        "bert",
        {
            **_SIZES,
            "max_position_embeddings": MAX_TOKENS,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 16,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "mpnet": ("MPNet", "roberta", {**_SIZES, "max_position_embeddings": 66, "pad_token_id": 1}),
    "modernbert": (
        "ModernBert",
        "bert",
        {
            **_SIZES,
            "max_position_embeddings": MAX_TOKENS,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
}
VISION_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "vit": ("ViT", _VISION),
    "convnext": (
        "ConvNext",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    ),
    "dinov2": ("Dinov2", {**_VISION, "mlp_ratio": 2}),
}
_HEADS = {
    "none": "Model",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "masked": "ForMaskedLM",
    "image": "ForImageClassification",
}


def make_snapshot(
    folder: Path,
    family: str,
    head: str = "none",
    pooling: str | Sequence[str] | None = None,
    **options: Any,
) -> Path:
    """Write a small directory of a family and return its path.

    Args:
        folder: Made if it is not there.
        family: One of TEXT_FAMILIES, VISION_FAMILIES, `clip`, `siglip`.
        head: One of `_HEADS`.
        pooling: Modes; writes a sentence-transformers directory. See `add_pooling` for options.
        options: Of the configuration, such as `num_labels`, `id2label`, `problem_type`.
    """
    import transformers

    sentence = {key: options.pop(key) for key in _SENTENCE if key in options}
    if family in ("clip", "siglip"):
        return _two_towers(folder, family, head, options.pop("max_tokens", 16))
    if family in VISION_FAMILIES:
        prefix, values = VISION_FAMILIES[family]
        config = getattr(transformers, f"{prefix}Config")(**values, **options)
        write_image_processor(folder)
    else:
        prefix, tokens, values = TEXT_FAMILIES[family]
        size = write_tokenizer(folder, tokens)
        config = getattr(transformers, f"{prefix}Config")(vocab_size=size, **values, **options)
    write_model(folder, getattr(transformers, prefix + _HEADS[head]), config)
    if pooling is not None:
        add_pooling(folder, pooling, **sentence)
    return folder


def write_model(folder: Path, cls: Any, config: Any) -> None:
    """Save a model of a class of transformers with random weights."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = cls(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.3)
        _quietly(lambda: module.save_pretrained(folder))


def _quietly(act: Callable[[], Any]) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    act()


def write_tokenizer(
    folder: Path, manner: str, max_tokens: int = MAX_TOKENS, *, has_mask: bool = True
) -> int:
    """Save a tokenizer in the manner of `bert` or `roberta`, and return its number of tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    if manner == "bert":
        special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    else:
        special = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    pieces = [*special.values(), *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *WORDS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = special["cls"], special["sep"]
    second = f"$B:1 {sep}:1" if manner == "bert" else f"{sep} $B {sep}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {second}",
        special_tokens=[(token, vocabulary[token]) for token in (cls, sep)],
    )
    from transformers import PreTrainedTokenizerFast

    names = {f"{name}_token": token for name, token in special.items()}
    if manner != "bert":
        names |= {"bos_token": cls, "eos_token": sep}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        model_input_names=["input_ids"]
        + (["attention_mask"] if has_mask else [])
        + (["token_type_ids"] if manner == "bert" else []),
        **names,
    ).save_pretrained(folder)
    return len(vocabulary)


def write_image_processor(folder: Path, **changes: Any) -> None:
    """Write a `preprocessor_config.json` that resizes to 36 px and crops 32 px."""
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 36},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "do_convert_rgb": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "preprocessor_config.json", values | changes)


def write_tiling_processor(folder: Path, family: str, **changes: Any) -> None:
    """Write one that resizes the longer side to 48 px, then stretches to 32 px.

    Args:
        folder: Made if it is not there.
        family: `Idefics3` or `SmolVLM`.
        changes: Other values.
    """
    values = {
        **{"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 32}, "resample": 1},
        **{"do_image_splitting": False, "do_pad": True, "do_center_crop": None, "crop_size": None},
        "image_processor_type": f"{family}ImageProcessor",
    }
    write_image_processor(folder, **values | changes)


_SENTENCE = ("dense", "normalize", "prompts", "default_prompt", "include_prompt", "max_seq_length")


def add_pooling(
    folder: Path,
    pooling: str | Sequence[str],
    *,
    dense: int | None = None,
    normalize: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
    include_prompt: bool = True,
    max_seq_length: int | None = None,
) -> None:
    """Make a sentence-transformers directory of a snapshot, as releases before 6 write it."""
    modes = [pooling] if isinstance(pooling, str) else [*pooling]
    width = 32
    old = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    old |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"}
    steps = ["Transformer", "Pooling"]
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            **{f"pooling_mode_{key}": mode in modes for mode, key in old.items()},
            "include_prompt": include_prompt,
        },
    )
    if dense is not None:
        steps.append("Dense")
        _write_dense(folder / "2_Dense", width * len(modes), dense)
    if normalize:
        steps.append("Normalize")
    write_json(
        folder / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": f"{index}_{step}" if index else "",
                "type": f"sentence_transformers.models.{step}",
            }
            for index, step in enumerate(steps)
        ],
    )
    if max_seq_length is not None:
        lengths = {"max_seq_length": max_seq_length, "do_lower_case": False}
        write_json(folder / "sentence_bert_config.json", lengths)
    if prompts is not None:
        values = {"prompts": dict(prompts), "default_prompt_name": default_prompt}
        write_json(folder / "config_sentence_transformers.json", values)


def _write_dense(folder: Path, num_in: int, num_out: int) -> None:
    import torch
    from safetensors.torch import save_file

    values = {
        "in_features": num_in,
        "out_features": num_out,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    write_json(folder / "config.json", values)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "linear.weight": torch.randn(num_out, num_in, generator=generator),
        "linear.bias": torch.randn(num_out, generator=generator),
    }
    save_file(tensors, folder / "model.safetensors")


def _two_towers(folder: Path, family: str, head: str, max_tokens: int) -> Path:
    """Write CLIP or SigLIP: both towers, or the one that `head` names (`vision`, `text`)."""
    import transformers

    prefix = {"clip": "CLIP", "siglip": "Siglip"}[family]
    size = write_tokenizer(folder, "roberta", max_tokens, has_mask=family == "clip")
    text = {**_SIZES, "vocab_size": size, "max_position_embeddings": max_tokens}
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    if family == "clip":
        text["projection_dim"] = 24
    vision = {**_VISION, **({"projection_dim": 24} if family == "clip" else {})}
    write_image_processor(folder)
    if head == "none":
        both = {"text_config": text, "vision_config": vision}
        if family == "clip":
            both["projection_dim"] = 24
        config = getattr(transformers, f"{prefix}Config")(**both)
        write_model(folder, getattr(transformers, f"{prefix}Model"), config)
        return folder
    values = {"vision": vision, "text": text}[head]
    name = f"{prefix}{head.capitalize()}"
    config = getattr(transformers, f"{name}Config")(**values)
    ending = "ModelWithProjection" if family == "clip" else "Model"
    write_model(folder, getattr(transformers, name + ending), config)
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; the folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change_json(path: Path, **changes: Any) -> None:
    """Change some values of a JSON object in a file; None takes one out."""
    values = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in values.items() if value is not None})


def cut_in_two(folder: Path) -> dict[str, str]:
    """Write the weights of a directory as two shards; return tensor -> file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for number, half in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in half}, folder / name)
        where |= dict.fromkeys(half, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return where


def make_timm(folder: Path, name: str, num_classes: int, **options: Any) -> Path:
    """Write a directory of timm with random weights.

    Args:
        folder: Made if it is not there.
        name: An architecture of timm.
        num_classes: Outputs; 0: vectors.
        options: `label_names`, and arguments of the architecture.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    label_names = options.pop("label_names", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.3)
    write_json(
        folder / "config.json",
        {
            "architecture": name,
            "num_classes": num_classes,
            "num_features": module.num_features,
            **({"label_names": label_names} if label_names else {}),
            "model_args": options,
            "pretrained_cfg": {
                "tag": "made_here",
                "input_size": [3, 32, 32],
                "interpolation": "bicubic",
                "crop_pct": 0.95,
                "crop_mode": "center",
                "mean": [0.5, 0.4, 0.3],
                "std": [0.2, 0.3, 0.4],
                "num_classes": num_classes,
            },
        },
    )
    save_file(module.state_dict(), folder / "model.safetensors")
    return folder
