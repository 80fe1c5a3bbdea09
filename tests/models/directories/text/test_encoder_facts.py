"""Directories of text encoders give what the library gives, for every pooling and way to save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.snapshots import PAIRS, TEXTS, make_snapshot

from pipeline.models.directories.build import build_module
from pipeline.models.directories.opening import read_facts
from pipeline.models.directories.snapshot import open_directory
from pipeline.models.directories.text.sentence_transformers import MODES
from pipeline.models.tasks.base import TaskSpec

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make each snapshot once."""
    known: dict[str, Path] = {}

    def make(family: str, head: str = "none", **options: Any) -> Path:
        key = f"{family}-{head}-{options}"
        if key not in known:
            folder = tmp_path_factory.mktemp("model") / "snapshot"
            known[key] = make_snapshot(folder, family, head, **options)
        return known[key]

    return make


def tokens(path: Path, *columns: tuple[str, ...]) -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return dict(tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="pt"))


def run(path: Path, task: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    facts = read_facts(path)
    assert facts.text is not None
    module = build_module(path, facts, TaskSpec(task), {})
    assert not module.training
    with torch.inference_mode():
        return module(**{k: v for k, v in inputs.items() if k in facts.text.tensor_names})


@pytest.mark.parametrize("mode", [*MODES, ("cls", "mean", "lasttoken")])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling_is_that_of_sentence_transformers(mode, include_prompt, tmp_path):
    from sentence_transformers import SentenceTransformer

    path = make_snapshot(
        tmp_path / "m",
        "bert",
        pooling=mode,
        dense=8,
        prompts={"query": "query: ", "other": ""},
        default_prompt="query",
        include_prompt=include_prompt,
        max_seq_length=12,
    )
    expected = torch.from_numpy(SentenceTransformer(str(path), device="cpu").encode([*TEXTS]))
    facts = read_facts(path)
    assert facts.text is not None
    assert (facts.text.prefix, facts.text.max_tokens, facts.embedding_dim) == ("query: ", 12, 8)
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(path)(
        [facts.text.prefix + text for text in TEXTS],
        padding=True,
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )
    torch.testing.assert_close(run(path, "embed", dict(inputs)), expected, **CLOSE)


def test_what_the_installed_sentence_transformers_saves_is_read(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    path = make_snapshot(tmp_path / "m", "bert")
    parts = [
        modules.Transformer(str(path)),
        modules.Pooling(32, pooling_mode="weightedmean"),
        modules.Dense(32, 16),
        modules.Normalize(),
    ]
    model = SentenceTransformer(modules=parts, device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    found = run(tmp_path / "saved", "embed", tokens(path, TEXTS))
    torch.testing.assert_close(found, torch.from_numpy(model.encode([*TEXTS])), **CLOSE)


@pytest.mark.parametrize("saved_by", ["transformers", "sentence-transformers"])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_a_cross_encoder_scores_as_the_library_does(family, saved_by, made, tmp_path):
    from sentence_transformers import CrossEncoder

    path = made(family, "sequence", num_labels=1)
    model = CrossEncoder(str(path), device="cpu")
    if saved_by == "sentence-transformers":
        model.save_pretrained(str(tmp_path / "saved"))
        path = tmp_path / "saved"
    facts = read_facts(path)
    assert set(facts.tasks) == {"score", "regress"}
    assert facts.tasks[0] == ("score" if saved_by == "sentence-transformers" else "regress")
    assert facts.activation == "sigmoid"
    logits = run(path, "score", tokens(path, *zip(*PAIRS, strict=True)))
    expected = torch.from_numpy(model.predict([*PAIRS]))
    torch.testing.assert_close(logits.sigmoid()[:, 0], expected, **CLOSE)


def test_an_encoder_without_more_gives_the_mean_of_its_tokens(made):
    from transformers import AutoModel

    path = made("roberta", "masked")
    facts = read_facts(path)
    assert (facts.kind, facts.architecture, facts.tasks[0]) == (
        "transformers",
        "RobertaModel",
        "embed",
    )
    assert any("pooling mean" in line for line in facts.said)
    inputs = tokens(path, TEXTS)
    with torch.inference_mode():
        vectors = AutoModel.from_pretrained(path)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = (vectors * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(run(path, "embed", inputs), expected, **CLOSE)


def test_the_digest_is_of_the_files_that_are_used(made, tmp_path):
    path = made("bert", pooling="mean")
    directory, copy = open_directory(str(path))
    assert not (copy / "1_Pooling").is_symlink()
    assert read_facts(copy) == read_facts(path)
    assert open_directory(str(path))[0] == directory
