"""Test that random parameters are equal in all processes, and two models never mix."""

from __future__ import annotations

import random
from pathlib import Path

import models
import numpy as np
import pyarrow as pa
import pytest
import torch
from support.inputs.photos import build_images
from support.models.model_cases import resolve
from support.runs.cli import pipeline, write_job
from torch import nn

from pipeline.core.errors import JobError
from pipeline.core.node_cache import tensors_digest
from pipeline.inference.devices.load_runner import load_runner
from pipeline.models.spec import PredictorConfig, load_module, load_pinned
from pipeline.models.weights.weights import pin, seeded
from pipeline.storage.store import Store

PATH = "_control/all/tensors/f.json"


def config(store: Store | None, factory: str) -> PredictorConfig:
    spec = resolve(factory=factory)
    return PredictorConfig(spec, 2, 0.0, 1, pa.schema([]), models=store, pin=PATH)


def test_random_parameters_are_the_same_each_time_and_no_generator_is_moved() -> None:
    spec = resolve(factory="models:untrained")
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    torch.rand(3)
    first = load_module(spec)
    torch.manual_seed(99)
    np.random.seed(7)
    state = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    second = load_module(spec)
    assert tensors_digest(first) == tensors_digest(second)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    assert tensors_digest(load_module(spec, "another seed")) != tensors_digest(first)
    torch.set_rng_state(before[0])


def test_generators_are_restored_when_a_factory_fails() -> None:
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shape"), seeded("m"):
        torch.rand(5).view(7)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_models_of_one_name_draw_alike_and_two_names_do_not() -> None:
    drawn = []
    for name in ("a", "a", "b"):
        with seeded(name):
            drawn.append((float(torch.rand(1)), random.random(), float(np.random.rand())))
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_digest_sees_every_tensor_and_takes_all_kinds() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    digests = {tensors_digest(module)}
    with torch.no_grad():
        module[0].bias[1] += 1
        digests.add(tensors_digest(module))
        module[1].running_var += 1
        digests.add(tensors_digest(module))
    module.register_buffer("hidden", torch.zeros(1), persistent=False)
    digests.add(tensors_digest(module))
    digests.add(tensors_digest(module.to(torch.bfloat16)))
    assert len(digests) == 5
    assert tensors_digest(nn.Linear(2, 2, device="meta"))


def test_an_actor_with_other_tensors_is_refused_and_one_with_the_same_is_not(
    usual_store: Store,
) -> None:
    loaded = [load_pinned(config(usual_store, "models:untrained")) for _ in range(3)]
    assert len({tensors_digest(module) for module in loaded}) == 1
    with pytest.raises(JobError, match="has other tensors than before in this very plan") as caught:
        pin(usual_store, PATH, models.Colours(), "models:untrained")
    assert caught.value.exit_code == 2
    assert "model.weights" in str(caught.value)


def test_a_factory_that_no_seed_holds_is_refused_by_the_second_actor_or_a_resumed_run(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    load_runner(config(store, "models:unseeded"))
    with pytest.raises(JobError, match="models:unseeded: has other tensors than before"):
        load_runner(config(store, "models:unseeded"))


@pytest.mark.parametrize("damage", [(b"{", b"["), (b's_sha256": "', b's_sha256": "0')])
def test_a_damaged_pin_is_written_anew(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    store, module = Store(str(tmp_path)), models.Colours()
    pin(store, PATH, module, "m")
    store.put(PATH, store.read_bytes(PATH).replace(*damage))
    pin(store, PATH, module, "m")
    with pytest.raises(JobError, match="m: has other tensors than before"):
        pin(store, PATH, nn.Linear(1, 1), "m")


@pytest.mark.no_ray
@pytest.mark.slow
def test_a_killed_run_of_a_factory_that_no_seed_holds_is_not_resumed_with_another_model(
    tmp_path: Path,
) -> None:
    build_images(tmp_path / "in", 20, seed=1, num_bad=0)
    source = {"uri": str(tmp_path / "in"), "format": "images"}
    model = {"factory": "models:unseeded", "labels": models.LABELS}
    path, out = tmp_path / "job.yaml", str(tmp_path / "out")
    job = write_job(path, source, out, model=model, run={"slice_rows": 4, "lease_ttl_s": 1})
    killed = pipeline("run", job, env={"PIPELINE_FAILPOINT": "slice_done:kill"})
    assert killed.code < 0, killed.stderr
    again = pipeline("run", job, "--json")
    assert again.code == 2, again.stderr
    assert "models:unseeded: has other tensors than before in this very plan" in again.json["error"]
    assert "WARNING model.factory = 'models:unseeded' without model.weights" in again.stderr
