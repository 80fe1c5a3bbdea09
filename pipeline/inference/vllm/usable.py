"""Check that vLLM can run the model of a job, before anything is loaded; imports no vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.util import find_spec

from pipeline.core.errors import JobError
from pipeline.models.generate.spec import Rules
from pipeline.models.spec import ModelSpec

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precision -> its name in vLLM."""
_ON_CPU = ("fp32", "bf16")
_MOST_REFERENCE_BYTES = 4 << 30
"""The reference is in fp32 on the CPU, beside vLLM; a larger one would hold up the GPU."""


def require_usable_engine(model: ModelSpec, *, is_on_gpu: bool, is_here: bool) -> None:
    """Check that vLLM can run a model.

    Args:
        model: The model, whose engine is vLLM.
        is_on_gpu: Whether the job asks for GPUs.
        is_here: Whether workers run on this machine, so that its packages count.

    Raises:
        JobError: It cannot, or is not installed; names the remedy.
    """
    for problem in _problems(model, is_on_gpu, is_here):
        raise JobError(f"model.engine = 'vllm': {problem}")


def reference_problem(model: ModelSpec) -> str:
    """Return why no row of vLLM's is compared with eager fp32, or ''."""
    if not model.has_other_engine:
        return ""
    problem = _quantised(model) and "the weights are quantised"
    if not problem and model.file_bytes() > _MOST_REFERENCE_BYTES:
        problem = "the weights have more than 4 GiB"
    return problem and f"rows of vLLM are not compared with eager fp32: {problem}"


def _quantised(model: ModelSpec) -> str:
    return model.facts.quantised if model.facts else ""


def _problems(model: ModelSpec, is_on_gpu: bool, is_here: bool) -> Iterator[str]:
    if is_here and find_spec("vllm") is None:
        yield "vllm is not installed: pip install 'batch-inference-pipeline[vllm]'"
    precisions, what = tuple(DTYPES) if is_on_gpu else _ON_CPU, ""
    if quantised := _quantised(model):
        precisions, what = precisions[1:], f" for weights quantised by {quantised}"
    if model.precision not in precisions:
        yield f"it runs model.precision {', '.join(precisions)} here{what}, not {model.precision}"
    generation = model.task.generation
    rules = generation.rules if generation else Rules()
    applied = {"ends": (), "min_length": 0, "min_new_tokens": 0}
    applied |= {"start": (), "repetition_penalty": 1.0}
    rest, plain = replace(rules, **applied, cleans=False), Rules()  # type: ignore[arg-type]
    if names := [f.name for f in fields(Rules) if getattr(rest, f.name) != getattr(plain, f.name)]:
        yield (
            f"it does not apply the rules {', '.join(names)} of generation_config.json as "
            "transformers does; leave model.engine out"
        )
