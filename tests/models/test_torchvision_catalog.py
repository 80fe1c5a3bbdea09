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


def test_facts_of_a_detector_are_those_of_its_weights():
    facts = torchvision_facts("fasterrcnn_resnet50_fpn")
    assert facts is not None
    assert facts["family"] == "detection"
    [coco] = facts["weights"]
    assert coco["sha256"] == "258fb6c6"
    assert coco["labels"][:2] == ["__background__", "person"]
    assert (coco["transform"]["resize"], coco["transform"]["size_px"]) == ("none", None)


@pytest.mark.parametrize(
    ("name", "begins", "is_without_eps"),
    [
        ("fasterrcnn_resnet50_fpn", "258fb6c6", True),
        ("fasterrcnn_resnet50_fpn", "1" * 8, False),
        ("fasterrcnn_resnet50_fpn_v2", "dd69338a", False),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("fasterrcnn_resnet50_fpn", None, False),
                ("keypointrcnn_resnet50_fpn", "fc266e95", True),
                ("maskrcnn_resnet50_fpn", "bf2d0c1e", True),
                ("retinanet_resnet50_fpn", "eeacb38b", True),
            )
        ),
    ],
)
def test_detectors_have_no_epsilon_just_where_torchvision_takes_it_from_its_weights(
    name: str, begins: str | None, is_without_eps: bool
):
    """They are built without a download."""
    module = torchvision_module(name, begins and begins + "0" * 56, num_classes=3)
    eps = {module.eps for module in module.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert (eps == {0.0}) == is_without_eps
