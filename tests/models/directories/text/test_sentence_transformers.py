"""Test that sentence-transformers directories with one odd field give the vectors of `encode`.

Each is written by the library's `save_pretrained`, then one file is changed; what is not run is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models.language_models import CHAT, make_language_model
from support.models.library_cases import Case, embedding, require_scores_of_the_library
from support.models.snapshots import change_json, make_snapshot, write_json, write_model
from support.runs.jobs import job_over
from support.runs.selection import quick_cases
from tokenizers import Tokenizer, normalizers

from pipeline.core.errors import JobError
from pipeline.inference.library_check import hold_to_library
from pipeline.job.model import Model
from pipeline.models.directories.opening import read_facts
from pipeline.models.resolving.resolve import resolve_model

Make = Callable[[Path], Path]
SETTINGS, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
TEXTS = ("The cat  sat on the mat. ", "a", "rain in the city, by the long way home " * 12)


def of_encoder(path: Path, rows: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu").encode(list(rows)).tolist()


def saved(*steps: Callable[[Any], Any], base: Make | None = None, **options: Any) -> Make:
    """Return what saves a model of a base and some modules.

    Args:
        steps: Make a module of the library's modules.
        base: Writes the directory of the base; None: BERT of 32 numbers.
        options: Of SentenceTransformer.
    """

    def make(folder: Path) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules

        made = base(folder / "base") if base else make_snapshot(folder / "base", "bert")
        parts = [modules.Transformer(str(made)), *(step(modules) for step in steps)]
        model = SentenceTransformer(modules=parts, device="cpu", **options)
        model.save_pretrained(str(folder / "saved"))
        return folder / "saved"

    return make


def changed(make: Make, file: str, **changes: Any) -> Make:
    """Return what makes a directory and changes one file of it, which need not be there."""

    def change(folder: Path) -> Path:
        path = make(folder)
        if not (path / file).exists():
            write_json(path / file, {})
        change_json(path / file, **changes)
        return path

    return change


def renamed(make: Make, name: str) -> Make:
    """Return what gives the settings of a directory the name that older releases gave them."""

    def rename(folder: Path) -> Path:
        path = make(folder)
        (path / SETTINGS).unlink()
        write_json(path / name, {"max_seq_length": 10, "do_lower_case": False})
        return path

    return rename


def cased(folder: Path) -> Path:
    """BERT whose tokenizer keeps capitals."""
    path = make_snapshot(folder, "bert")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def language_model(chat: str | None = CHAT) -> Make:
    return lambda folder: make_language_model(folder, "qwen2", chat)


def means(modules: Any) -> Any:
    return modules.Pooling(32, pooling_mode="mean")


def lasts(modules: Any) -> Any:
    return modules.Pooling(32, pooling_mode="lasttoken")


def dense(*sizes: int, **options: Any) -> Callable[[Any], Any]:
    return lambda modules: modules.Dense(*sizes, **options)


def gelu() -> Any:
    import torch

    return torch.nn.GELU()


MEANS, LASTS = saved(means), saved(lasts, base=language_model())
TRIMMED = CHAT.replace("message.content }}", "message.content | trim }}")
SHOUTED = CHAT.replace("message.content }}", "message.content | upper }}")
DATED = CHAT + "{{ strftime_now('%Y') if strftime_now is defined else 'x' }}"
PROMPT = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
EQUAL: dict[str, Make] = {
    "chat template": LASTS,
    "chat template that trims": saved(lasts, base=language_model(TRIMMED)),
    "chat template and a prompt": changed(LASTS, PROMPTS, **PROMPT),
    "chat template, texts cut": changed(LASTS, SETTINGS, max_seq_length=24),
    "options of the chat template": changed(
        LASTS, SETTINGS, processing_kwargs={"chat_template": {"add_generation_prompt": True}}
    ),
    "no chat template": saved(lasts, base=language_model(None)),
    "truncated": saved(means, truncate_dim=8),
    "truncated behind a dense layer": saved(means, dense(32, 16), truncate_dim=8),
    "texts cut by the processor": changed(
        MEANS, SETTINGS, processing_kwargs={"text": {"max_length": 8}}
    ),
    "texts cut by all processors": changed(
        MEANS, SETTINGS, processing_kwargs={"common": {"max_length": 12}}
    ),
    "texts cut by the tokenizer": changed(MEANS, SETTINGS, tokenizer_args={"model_max_length": 9}),
    "starts cut": changed(MEANS, SETTINGS, processor_kwargs={"truncation_side": "left"}),
    **{
        f"settings of {name}": renamed(MEANS, f"sentence_{name}_config.json")
        for name in ("roberta", "distilbert", "xlm-roberta")
    },
    "lower case": changed(saved(means, base=cased), SETTINGS, do_lower_case=True),
    "dtype": changed(MEANS, SETTINGS, model_args={"dtype": "float32"}),
    "layer norm, dropout": saved(
        means,
        lambda modules: modules.LayerNorm(32),
        lambda modules: modules.Dropout(0.5),
        lambda modules: modules.Normalize(),
    ),
    "residual dense layers": saved(means, dense(32, 16, use_residual=True)),
    "residual dense layer of one width": saved(means, dense(32, 32, use_residual=True)),
    "dense layer of tokens": saved(
        lambda modules: modules.Dense(
            *(32, 16),
            activation_function=gelu(),
            module_input_name="token_embeddings",
            module_output_name="token_embeddings",
        ),
        lambda modules: modules.Pooling(16, pooling_mode="max"),
    ),
    "encoder of T5": saved(means, base=lambda folder: make_language_model(folder, "t5", None)),
}
LONG = (
    *("chat template", "chat template, texts cut", "options of the chat template"),
    *("no chat template", "truncated", "texts cut by all processors"),
    *("texts cut by the tokenizer", "starts cut", "settings of distilbert"),
    *("settings of xlm-roberta", "dtype", "residual dense layer of one width"),
)
"""Variants of what another row shows."""
REFUSED: dict[str, tuple[Make, str]] = {
    "chat template that changes texts": (
        saved(lasts, base=language_model(SHOUTED)),
        "chat template: writes .* which is not supported",
    ),
    "chat template with the date": (
        saved(lasts, base=language_model(DATED)),
        "writes the time of day",
    ),
    "no special tokens": (
        changed(MEANS, SETTINGS, processing_kwargs={"text": {"add_special_tokens": False}}),
        "probe 'A good film.': input_ids .* in sentence-transformers",
    ),
    "padded to a length": (
        changed(MEANS, SETTINGS, processing_kwargs={"text": {"padding": "max_length"}}),
        "probe 'A good film.': input_ids",
    ),
    "configuration beside config.json": (
        changed(MEANS, SETTINGS, config_args={"hidden_act": "relu"}),
        "config_args has hidden_act, expected in config.json",
    ),
    "layers weighed": (
        saved(lambda modules: modules.WeightedLayerPooling(32, 2, 1), means),
        "WeightedLayerPooling .* model.factory runs any module",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", quick_cases(((name,) for name in EQUAL), lambda name: name not in LONG)
)
def test_vectors_are_those_of_encode(name: str, tmp_path: Path):
    case = Case(EQUAL[name], of_encoder, embedding, tolerance=2e-5)
    require_scores_of_the_library(case, tmp_path, TEXTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_are_not_run_are_refused_by_name(name: str, tmp_path: Path):
    make, words = REFUSED[name]
    path = make(tmp_path)
    with pytest.raises(JobError, match=words):
        read_facts(path)


def test_no_vector_is_longer_than_the_directorys(tmp_path):
    path = MEANS(tmp_path)
    job = job_over("text", Model(path=str(path), embedding_dim=33))
    with pytest.raises(JobError, match=r"= 33: .*gives 32 numbers; leave it out, or give less"):
        resolve_model(job)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("has_length_1", [True, False])
def test_the_first_numbers_of_vectors_are_as_the_library_cuts_them(
    has_length_1: bool, tmp_path: Path
):
    def cut(path: Path, rows: Any) -> Any:
        model = SentenceTransformer(str(path), device="cpu", truncate_dim=8)
        return model.encode([*rows], normalize_embeddings=has_length_1).tolist()

    from sentence_transformers import SentenceTransformer

    steps = [means, *([lambda modules: modules.Normalize()] if has_length_1 else [])]
    case = Case(saved(*steps), cut, embedding, {"embedding_dim": 8}, tolerance=2e-5)
    require_scores_of_the_library(case, tmp_path, TEXTS)
    job = job_over("text", Model(path=str(tmp_path / "saved"), embedding_dim=8))
    assert "sentence_transformers" in hold_to_library(resolve_model(job)).replace("-", "_")


def test_a_cross_encoder_with_a_chat_template_is_refused(tmp_path):
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig, Qwen2ForSequenceClassification

    path = make_language_model(tmp_path / "base", "qwen2", CHAT)
    config = AutoConfig.from_pretrained(path, num_labels=1)
    write_model(path, Qwen2ForSequenceClassification, config)
    CrossEncoder(str(path), device="cpu").save_pretrained(str(tmp_path / "saved"))
    with pytest.raises(JobError, match="writes pairs by a chat template"):
        read_facts(tmp_path / "saved")
