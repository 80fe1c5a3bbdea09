"""Test that directories of texts predict as their library does, and that a difference is found.

To make a difference, one fact of a directory that is equal is changed or taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.models.detector_snapshots import make_detector
from support.models.language_models import (
    CHAT,
    FAMILIES,
    make_language_model,
    write_language_tokenizer,
)
from support.models.library_cases import UntriedInput, compared
from support.models.snapshots import (
    MAX_TOKENS,
    TEXT_FAMILIES,
    change_json,
    make_snapshot,
    write_json,
    write_model,
)
from support.runs.jobs import SOURCES, job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.schema import TEXT, TEXT_PAIR
from pipeline.inference.library_check import compare_confined, hold_to_library
from pipeline.models.directories.facts import MODES, DirectoryFacts
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec

NAMES = ("contradiction", "neutral", "entailment")
NLI = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
TYPED = ["input_ids", "token_type_ids", "attention_mask"]


def spec_of(path: Path, *, has_pair: bool = False, **model: Any) -> ModelSpec:
    source = {**SOURCES["text"], **({"text_pair_column": "other"} if has_pair else {})}
    spec = resolve_model(job_of({"path": str(path), **model}, source))
    names = (TEXT, TEXT_PAIR)[: 1 + has_pair]
    return spec.fitted(pa.schema([(name, pa.large_string()) for name in names]))


def with_text(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """Return a spec whose texts are read otherwise, in facts and in what is prepared."""
    facts = spec.facts
    assert facts is not None
    assert facts.text is not None
    text = replace(spec.input.text, **changes)
    return replace(
        spec,
        facts=replace(facts, text=replace(facts.text, **changes)),
        input=replace(spec.input, text=text),
    )


def with_pooling(spec: ModelSpec, **changes: Any) -> ModelSpec:
    facts = spec.facts
    assert facts is not None
    assert facts.pooling is not None
    return replace(spec, facts=replace(facts, pooling=replace(facts.pooling, **changes)))


def classifier(family: str, **options: Any) -> Callable[[Path], Path]:
    """Return what writes a classifier on a language model."""

    def make(folder: Path) -> Path:
        import transformers

        make_language_model(folder, family, None)
        config = transformers.AutoConfig.from_pretrained(folder, num_labels=3, **options)
        name = f"{FAMILIES[family][0]}ForSequenceClassification"
        write_model(folder, getattr(transformers, name), config)
        return folder

    return make


def typed_gpt2(folder: Path) -> Path:
    """GPT-2 with token types, which it adds to its tokens."""
    path = classifier("gpt2")(folder)
    change_json(path / "tokenizer_config.json", model_input_names=TYPED)
    return path


def of_images_too(folder: Path) -> Path:
    """A classifier of Gemma 3, whose tower of images has 16 places."""
    import transformers

    size = write_language_tokenizer(folder)
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 32}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**FAMILIES["gemma3"][1], "vocab_size": size}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, num_labels=3, pad_token_id=0
    )
    write_model(folder, transformers.Gemma3ForSequenceClassification, config)
    return folder


def sentence(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: make_snapshot(folder, "bert", pooling="mean", **options)


def truncated(folder: Path) -> Path:
    path = sentence(dense=8)(folder)
    write_json(path / "config_sentence_transformers.json", {"truncate_dim": 4})
    return path


def cut(folder: Path) -> Path:
    path = sentence()(folder)
    limits = {"processing_kwargs": {"text": {"max_length": 8}}}
    write_json(path / "sentence_bert_config.json", limits)
    return path


def chatting(folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    made = make_language_model(folder / "base", "qwen2", CHAT)
    parts = [modules.Transformer(str(made)), modules.Pooling(32, pooling_mode="lasttoken")]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


def cased(folder: Path) -> Path:
    """BERT whose settings keep capitals, which its file does not."""
    path = make_snapshot(folder, "bert", "sequence", num_labels=3)
    change_json(
        path / "tokenizer_config.json",
        tokenizer_class="BertTokenizer",
        tokenize_chinese_chars=False,
        cls_token="[MASK]",
    )
    return path


def with_facts(spec: ModelSpec, **changes: Any) -> ModelSpec:
    assert isinstance(spec.facts, DirectoryFacts)
    return replace(spec, facts=replace(spec.facts, **changes))


Case = tuple[Callable[[Path], Path], dict[str, Any], Callable[[ModelSpec], ModelSpec], str]
CASES: dict[str, Case] = {
    # makes the directory; of the job's model, and whether rows are pairs; takes a fact out; said
    "token types": (
        typed_gpt2,
        {},
        lambda spec: with_text(spec, tensor_names=tuple(TYPED[::2]), types_alone=False),
        "expected 'LABEL_",
    ),
    "token types of pairs": (
        lambda folder: make_snapshot(folder, "bert", "sequence", num_labels=3),
        {"has_pair": True},
        lambda spec: with_text(spec, tensor_names=tuple(TYPED[::2])),
        "expected 'LABEL_",
    ),
    "places of texts, not of images": (
        of_images_too,
        {},
        lambda spec: with_text(spec, max_tokens=16),
        "expected 'LABEL_",
    ),
    "tokenizer as the library has it": (
        cased,
        {},
        lambda spec: with_text(spec, overlay=""),
        "expected 'LABEL_",
    ),
    "batches of one text": (
        classifier("llama", pad_token_id=None),
        {},
        lambda spec: replace(spec, input=UntriedInput(spec.input.text)),
        "expected 'LABEL_",
    ),
    "truncate_dim": (
        truncated,
        {},
        lambda spec: replace(
            with_pooling(spec, layers=spec.facts.pooling.layers[:-1]),  # type: ignore[union-attr]
            task=replace(spec.task, embedding_dim=8),
        ),
        "gives vectors of 4 numbers, and 8 are made here",
    ),
    "dense layer": (
        sentence(dense=32),
        {},
        lambda spec: with_pooling(spec, layers=()),
        "expected embedding",
    ),
    "limit of the processor": (
        cut,
        {},
        lambda spec: with_text(spec, max_tokens=MAX_TOKENS),
        "expected embedding",
    ),
    "chat template": (
        chatting,
        {},
        lambda spec: with_text(spec, prompt=None),
        "expected embedding",
    ),
    "prompt": (
        sentence(prompts={"query": "query: "}, default_prompt="query"),
        {},
        lambda spec: with_text(spec, prefix=""),
        "expected embedding",
    ),
    "activation of scores": (
        lambda folder: make_snapshot(folder, "bert", "sequence", num_labels=1),
        {"task": "score", "has_pair": True},
        lambda spec: replace(spec, task=replace(spec.task, activation="identity")),
        "expected score",
    ),
    "labels of entailment": (
        lambda folder: make_snapshot(folder, "bert", "sequence", **NLI),
        {"task": "zero_shot", "prompts": ["a dog", "rain", "the long way"]},
        lambda spec: with_facts(spec, labels=NAMES[::-1]),
        "expected '",
    ),
    "labels of each text": (
        lambda folder: make_snapshot(folder, "bert", "sequence", num_labels=3),
        {"task": "multilabel", "min_score": 0.0},
        lambda spec: replace(spec, task=replace(spec.task, scores="softmax")),
        "expected",
    ),
}


ODD = (
    *("token types", "places of texts, not of images", "tokenizer as the library has it"),
    "batches of one text",
)
"""Those that no other test holds to the library."""
QUICK = (
    *("token types", "batches of one text", "truncate_dim", "prompt", "activation of scores"),
    "labels of entailment",
)
MULTI = {"problem_type": "multi_label_classification"}
NUMBER = {"num_labels": 1, "problem_type": "regression"}
PROMPTED = {"prompts": {"query": "query: ", "other": ""}, "default_prompt": "query"}
SCORED = {"task": "score", "has_pair": True}
ASKED = {"task": "zero_shot", "prompts": ["a dog", "rain", "the long way"]}
LONG = (
    *("bert regress", "bert embed without pooling", "bert head that is for training"),
    *("siglip embed", "bert regress, three targets"),
)
Held = tuple[str, str, dict[str, Any], dict[str, Any]]
HELD: dict[str, Held] = {
    # family, head, options of the directory; of the job's model, and whether rows are pairs
    **{f"{family} classify": (family, "sequence", {}, {}) for family in TEXT_FAMILIES},
    **{f"{family} tokens": (family, "token", {"num_labels": 5}, {}) for family in TEXT_FAMILIES},
    **{
        f"{family} embed": (family, "none", {"pooling": "mean", "normalize": True}, {})
        for family in TEXT_FAMILIES
    },
    **{f"{family} zero_shot": (family, "sequence", NLI, ASKED) for family in TEXT_FAMILIES},
    **{
        f"{family} score": (family, "sequence", {"num_labels": 1}, SCORED)
        for family in TEXT_FAMILIES
    },
    **{f"{family} embed without pooling": (family, "none", {}, {}) for family in TEXT_FAMILIES},
    "bert pairs": ("bert", "sequence", {}, {"has_pair": True}),
    "bert multilabel": ("bert", "sequence", {"num_labels": 3, **MULTI}, {}),
    "bert regress": ("bert", "sequence", NUMBER, {}),
    "bert regress, three targets": (
        *("bert", "sequence", {**NUMBER, "num_labels": 3}),
        {"targets": ["mass", "charge", "spin"]},
    ),
    "bert head that is for training": ("bert", "masked", {}, {}),
    "clip embed": ("clip", "none", {}, {}),
    "siglip embed": ("siglip", "none", {}, {}),
    **{
        f"bert {mode}, {'with' if has_prompt else 'without'} prompt": (
            "bert",
            "none",
            {
                **{"pooling": mode, "dense": 8, "include_prompt": has_prompt},
                **{"max_seq_length": 12, **PROMPTED},
            },
            {},
        )
        for mode in (*MODES, ("cls", "mean", "lasttoken"))
        for has_prompt in (True, False)
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    quick_cases(
        ((name,) for name in HELD),
        lambda name: (
            name.startswith(("bert ", "clip", "siglip"))
            and (" prompt" not in name or name == "bert mean, without prompt")
            and name not in LONG
        ),
    ),
)
def test_each_family_and_task_is_equal_to_its_library(name: str, tmp_path: Path):
    family, head, options, model = HELD[name]
    path = make_snapshot(tmp_path / "model", family, head, **options)
    result = compared(spec_of(path, **model))
    assert result.endswith(("on 8 texts", "on 7 texts", "on 6 texts", "on 4 pairs"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*ODD])
def test_a_directory_with_an_odd_fact_is_equal_to_its_library(name: str, tmp_path: Path):
    make, model, *_ = CASES[name]
    assert compare_confined(spec_of(make(tmp_path / "model"), **model)).endswith("texts")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", quick_cases(((name,) for name in CASES), lambda name: name in QUICK)
)
def test_a_directory_without_a_fact_is_refused_by_its_probe(name: str, tmp_path: Path):
    make, model, take_out, words = CASES[name]
    spec = spec_of(make(tmp_path / "model"), **model)
    with pytest.raises(JobError, match=words):
        compared(take_out(spec))


@pytest.mark.parametrize(
    ("make", "input_name", "model"),
    [
        (lambda folder: make_detector(folder, "rt_detr"), "image", {"task": "detect"}),
        (
            lambda folder: make_snapshot(folder, "roberta", "sequence", **NLI),
            "text",
            {"task": "zero_shot", "prompts": ["a", "the long way home by the river"]},
        ),
    ],
    ids=["boxes of a library that keeps one per query", "prompts of two lengths"],
)
def test_what_the_library_cuts_otherwise_is_no_difference(
    make: Callable[[Path], Path], input_name: str, model: dict[str, Any], tmp_path: Path
):
    path = make(tmp_path / "m")
    spec = resolve_model(job_of({"path": str(path), **model}, SOURCES[input_name]))
    assert hold_to_library(spec).startswith("transformers ")
