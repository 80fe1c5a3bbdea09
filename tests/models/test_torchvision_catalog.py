"""torchvision's models load without torch's compiler, which is imported when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from pipeline.models.torchvision_catalog import torchvision_facts, torchvision_module

SCRIPT = """
import json, sys
from pipeline.models.torchvision_catalog import torchvision_module

def compiler(): return any(name.startswith("torch._dynamo") for name in sys.modules)

module = torchvision_module("resnet18")
import torch
with torch.inference_mode():
    shape = list(module.eval()(torch.zeros(2, 3, 32, 32)).shape)
without = not compiler()
from torchvision.ops import roi_align
deferred = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
print(json.dumps([shape, without, deferred == is_compile_supported("cpu"), compiler()]))
"""


@pytest.mark.slow
def test_a_model_is_built_without_the_compiler_which_is_there_when_it_is_wanted():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[2, 1000], True, True, True]


def test_a_detector_is_built_without_a_download_and_as_torchvision_would_load_its_own_weights():
    name = "fasterrcnn_resnet50_fpn"
    for digest, eps in ((f"258fb6c6{'0' * 56}", 0.0), ("1" * 64, 1e-5), (None, 1e-5)):
        module = torchvision_module(name, digest, num_classes=3)
        norms = [each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)]
        assert {each.eps for each in norms} == {eps}
    facts = torchvision_facts(name)
    assert facts is not None
    assert facts["family"] == "detection"
    [coco] = facts["weights"]
    assert coco["sha256"] == "258fb6c6"
    assert coco["labels"][:2] == ["__background__", "person"]
    assert (coco["transform"]["resize"], coco["transform"]["size_px"]) == ("none", None)


@pytest.mark.parametrize(
    ("name", "begins", "is_without_eps"),
    [
        ("keypointrcnn_resnet50_fpn", "fc266e95", True),
        ("maskrcnn_resnet50_fpn", "bf2d0c1e", True),
        ("retinanet_resnet50_fpn", "eeacb38b", True),
        ("fasterrcnn_resnet50_fpn_v2", "dd69338a", False),
    ],
)
def test_detectors_have_no_epsilon_just_where_torchvision_takes_it_from_its_weights(
    name: str, begins: str, is_without_eps: bool
):
    module = torchvision_module(name, begins + "0" * 56)
    eps = {each.eps for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)}
    assert (eps == {0.0}) == is_without_eps
