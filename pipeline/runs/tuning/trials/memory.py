"""Memory of what is tried out: of this process, and of the card that actors share."""

from __future__ import annotations

import resource

from pipeline.models.spec import PredictorConfig

_MIB = 1 << 20


def peak_mib(config: PredictorConfig) -> float:
    """Return the most memory that this process, or on a GPU its tensors, had at once."""
    from pipeline.inference.devices import device

    gpu = device.gpu_of(config.num_gpus)
    if gpu is not None:
        return round(gpu.used_bytes().most / _MIB, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def held_bytes(config: PredictorConfig) -> int:
    """Return what the tensors of this process have of its GPU's memory; 0 on the CPU."""
    from pipeline.inference.devices import device

    gpu = device.gpu_of(config.num_gpus)
    return 0 if gpu is None else gpu.used_bytes().now


def lack_of_memory(config: PredictorConfig, loaded_bytes: int) -> str:
    """Return why as many actors as share the card of this process do not fit into it, or ''.

    Args:
        config: The actor, which has worked.
        loaded_bytes: What its tensors took once the model was loaded.
    """
    from pipeline.inference.devices import device
    from pipeline.inference.runtimes.opening import dtype_of

    gpu = device.gpu_of(config.num_gpus)
    if gpu is None:
        return ""
    spec = config.spec
    float32_bytes = loaded_bytes * 4 // dtype_of(spec.runtime, spec.precision).itemsize
    return share_problem(
        gpu.used_bytes().most_reserved,
        0 if spec.is_reference else float32_bytes,
        config.num_gpus,
        gpu.memory_bytes()[1],
    )


def share_problem(
    reserved_bytes: int, reference_bytes: int, num_gpus: float, card_bytes: int
) -> str:
    """Return why an actor does not fit into its share of a card, or ''.

    Args:
        reserved_bytes: The most that torch's allocator had.
        reference_bytes: The float32 model that predicts some rows again. It counts where actors
            share a card; one that has a card for itself can take its own model off it meanwhile.
        num_gpus: The actor's share.
        card_bytes: The memory of the card.
    """
    from pipeline.inference.devices.accelerator import CONTEXT_BYTES

    share_bytes = card_bytes * min(1.0, num_gpus)
    needed_bytes = CONTEXT_BYTES + reserved_bytes + (reference_bytes if num_gpus < 1 else 0)
    if needed_bytes <= share_bytes:
        return ""
    return (
        f"an actor needs {needed_bytes / _MIB:,.0f} MiB of the card, with CUDA's own memory"
        f"{' and a float32 model to compare with' if num_gpus < 1 else ''}, and has "
        f"{share_bytes / _MIB:,.0f} MiB"
    )
