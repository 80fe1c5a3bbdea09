"""A Ray without a private name that a patch touches runs as before, only slower."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.runs.checkout import ROOT
from support.runs.cli import run_python

from pipeline.execution.private_names import NameMissing, look_up

PRIVATE = re.compile(r"\b(_private|_internal|_raylet)\b|\bray\.(\w+\.)*_[a-z]")
MAY_TOUCH = {"embedded", "private_names.py", "health.py"}
"""Patches and what they apply; `health` has one, and asks `private_names` for what it reads."""

DELETES = """
import contextlib, json, logging, sys
import ray.data
from pipeline.execution import private_names
from pipeline.execution.embedded import patches
from pipeline.execution.private_names import READS, NameMissing, look_up

lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
for module in (patches, private_names):
    module.log.addHandler(Keep())
    module.log.setLevel(logging.DEBUG)

@contextlib.contextmanager
def without(name):
    '''Delete what a name stands for, or the type that it is compiled into; yields what is gone.'''
    module, _, rest = name.partition("(")[0].partition(":")
    if not rest:
        saved = sys.modules.get(module)
        sys.modules[module] = None
        yield f"{module}:"
        del sys.modules[module]
        if saved is not None:
            sys.modules[module] = saved
        return
    owners, attributes = [sys.modules[module]], rest.split(".")
    for attribute in attributes[:-1]:
        owners.append(getattr(owners[-1], attribute))
    for depth in reversed(range(len(owners))):
        owner, attribute = owners[depth], attributes[depth]
        own = vars(owner).get(attribute, getattr(owner, attribute))
        try:
            delattr(owner, attribute)
        except (AttributeError, TypeError):
            continue
        yield f"{module}:{'.'.join(attributes[:depth + 1])}"
        setattr(owner, attribute, own)
        return
    raise RuntimeError(f"{name} cannot be deleted")

def active():
    return {patch.name for patch in patches.PATCHES if patch.missing() is None}

before, found = active(), {}
names = [name for patch in patches.PATCHES if patch.name in before for name in patch.touches]
for name in dict.fromkeys(names):
    with without(name) as gone:
        concerned = {
            patch.name for patch in patches.PATCHES
            for touched in patch.touches if touched.partition("(")[0].startswith(gone)
        }
        lines.clear()
        with patches.applied(*[p for p in patches.PATCHES if name in p.touches], ray=ray):
            pass
        found[name] = {
            "left": sorted(active() & concerned), "lost": sorted(before - active() - concerned),
            "lines": len(lines), "patches": sum(name in p.touches for p in patches.PATCHES),
        }
reads = {}
for what, name in READS.items():
    look_up(name)
    with without(name):
        lines.clear()
        reads[what] = [private_names.read(what), len(lines)]
print(json.dumps({"found": found, "reads": reads, "again": active() == before}))
"""


def test_without_any_one_private_name_its_patches_alone_are_left_out_with_a_debug_line_each():
    done = run_python(DELETES)
    assert done.code == 0, done.stderr
    deleted = done.json
    assert deleted["again"], "what was deleted is there again"
    assert len(deleted["found"]) > 5
    for name, seen in deleted["found"].items():
        assert (seen["left"], seen["lost"]) == ([], []), name
        assert seen["lines"] == seen["patches"] > 0, name
    assert set(map(tuple, deleted["reads"].values())) == {(None, 1)}


RUNS = """
import contextlib, dataclasses, json, logging, os, sys
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster import connect as module
from pipeline.execution.embedded import patches

lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
for name in (patches.__name__, module.__name__):
    logging.getLogger(name).addHandler(Keep())
    logging.getLogger(name).setLevel(logging.DEBUG)

def gone(patch):
    return dataclasses.replace(patch, touches=(*patch.touches, "ray._private.node:renamed"))

def misunderstood(patch):
    @contextlib.contextmanager
    def apply(ray, **named):
        services = ray._private.services
        before, services.start_ray_process = (
            services.start_ray_process, lambda *_, **__: {}["--renamed"])
        try:
            yield
        finally:
            services.start_ray_process = before
    return dataclasses.replace(patch, apply=apply)

how = sys.argv[1]
if how == "all gone":
    for name in ("TALK", "SIGTERM", "FORK", "END"):
        setattr(module, name, gone(getattr(module, name)))
    module.START, module.DATA = tuple(map(gone, module.START)), tuple(map(gone, module.DATA))
if how == "misunderstood":
    module.START = (*module.START[:-1], misunderstood(module.START[-1]))

class Add:
    def __call__(self, batch):
        return {"id": batch["id"] + 1}

with connect(None):
    import ray
    pool = ray.data.ActorPoolStrategy(size=1)
    rows = ray.data.range(8, override_num_blocks=4).map_batches(Add, compute=pool, num_cpus=0.5)
    rows = sorted(row["id"] for row in rows.take_all())
print(json.dumps({
    "rows": rows, "initialised": ray.is_initialized(),
    "left out": sum("is left out" in line for line in lines),
    "by itself": sum("starts by itself" in line for line in lines),
}))
"""


@pytest.mark.ray
@pytest.mark.any_ray
@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "all gone", "misunderstood"])
def test_a_run_gives_the_same_whatever_is_left_out(how: str):
    done = run_python(RUNS, how, env={"PIPELINE_PLAIN_RAY": "1" if how == "plain" else ""})
    assert done.code == 0, done.stderr
    seen = done.json
    assert (seen["rows"], seen["initialised"]) == (list(range(1, 9)), False)
    assert seen["by itself"] == (how == "misunderstood")
    if how == "plain":
        assert seen["left out"] == 0, "nothing is even looked for"
    if how == "all gone":
        assert seen["left out"] >= 15


def test_a_function_with_other_parameters_is_not_the_one_that_was_meant():
    assert look_up("json:dumps(obj, indent)") is json.dumps
    with pytest.raises(NameMissing):
        look_up("json:dumps(renamed)")
    with pytest.raises(NameMissing):
        look_up("no.such.module:")


def test_only_patches_touch_private_names_of_ray():
    touching = {}
    for path in Path(ROOT, "pipeline").rglob("*.py"):
        if MAY_TOUCH & {path.name, path.parent.name}:
            continue
        lines = [line for line in path.read_text().splitlines() if PRIVATE.search(line)]
        if lines and any("ray" in line for line in lines):
            touching[path.relative_to(ROOT).as_posix()] = lines
    # The names of loggers, and a method of the client that Ray documents for subclasses.
    touching.pop("pipeline/execution/submit/client.py", None)
    assert touching == {}
