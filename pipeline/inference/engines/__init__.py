"""Engines: prepared rows of a slice in, the table of their predictions and failures out.

Begin with `engine.py`, the protocol, and `torch_engine.py`. The job's task names the engine of its
models (`Task.engine`), unless the job does (`model.engine`). A new engine is a file with a class
like `torch_engine.TorchEngine`, a line here, and a row in
tests/inference/engines/test_engine_conformance.py; or a class in another distribution with an entry
point of group `pipeline.engines`. Other code opens engines by
`open_engine`, never by name. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.registry import ENGINES, get
from pipeline.core.user_code import extension_errors

if TYPE_CHECKING:
    from pipeline.inference.engines.engine import Engine
    from pipeline.inference.first_rows import SystematicFailureDetector
    from pipeline.models.spec import ModelSpec, PredictorConfig

REGISTRY = {
    "torch": "pipeline.inference.engines.torch_engine:TorchEngine",
    "generate": "pipeline.inference.generate.generate_engine:GenerateEngine",
    "vllm": "pipeline.inference.vllm.vllm_engine:VllmEngine",
}


def engine_class(spec: ModelSpec) -> type[Engine]:
    """Return the engine class of a model; this imports the engine's libraries.

    Raises:
        JobError: The engine is unknown, or its distribution is broken.
    """
    engine: type[Engine] = get(ENGINES, spec.engine)
    return engine


def open_engine(
    config: PredictorConfig,
    first: SystematicFailureDetector | None = None,
    *,
    ends_process: bool = False,
) -> Engine:
    """Load a model onto its device; see `Engine` for arguments and errors."""
    with extension_errors(ENGINES, config.spec.engine):
        return engine_class(config.spec)(config, first, ends_process=ends_process)
