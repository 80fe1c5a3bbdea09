"""Equal tensors in other files are the same model to carried rows; anything else is another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.models.snapshots import change_json, cut_in_two, make_snapshot

from pipeline.core.schema import text_fields
from pipeline.job.model import Model
from pipeline.job.transform import Transform
from pipeline.models.resolving.resolve import resolve_model
from pipeline.planning.predictor import predictor_key, predictor_parts

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_snapshot(tmp_path_factory.mktemp("made") / "m", "bert", pooling="mean")


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "elsewhere"))


def key_of(path: Path) -> tuple[str, str]:
    """Return the predictor key of a directory, and the digest of its files."""
    spec = resolve_model(Model(path=str(path)), Transform(), input_name="text")
    parts = predictor_parts(spec, text_fields(has_pair=False), {}, {}, {})
    return predictor_key(parts), str(spec.weights_sha256)


def test_the_same_tensors_in_two_shards_or_with_other_metadata_have_the_same_key(
    made: Path, path: Path
):
    key, files = key_of(made)
    save_file(load_file(path / WEIGHTS), path / WEIGHTS, metadata={"format": "pt", "by": "hand"})
    assert key_of(path)[0] == key
    cut_in_two(path)
    assert key_of(path)[0] == key
    assert key_of(path)[1] != files


def test_one_number_a_dtype_or_a_setting_that_differs_gives_another_key(made: Path, path: Path):
    keys = [key_of(made)[0]]
    tensors = load_file(path / WEIGHTS)
    name = max(tensors)
    save_file({**tensors, name: tensors[name] + 1}, path / WEIGHTS)
    keys.append(key_of(path)[0])
    save_file({each: values.half() for each, values in tensors.items()}, path / WEIGHTS)
    keys.append(key_of(path)[0])
    save_file(tensors, path / WEIGHTS)
    change_json(path / "config.json", layer_norm_eps=1e-3)
    keys.append(key_of(path)[0])
    assert len(set(keys)) == len(keys)
