"""Memory of what is tried out: of this process, and of the card that actors share."""

from __future__ import annotations

import resource

from pipeline.models.spec import PredictorConfig

CONTEXT_MIB = 600.0
"""What CUDA itself takes of a card for each process, beside its tensors; about."""
_MIB = 2**20


def peak_mib(config: PredictorConfig) -> float:
    """Return the most memory that this process, or on a GPU its tensors, had at once."""
    if config.num_gpus:
        import torch

        return round(torch.cuda.max_memory_allocated() / _MIB, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def held_mib(config: PredictorConfig) -> float:
    """Return what the tensors of this process have of its GPU's memory; 0 on the CPU."""
    if not config.num_gpus:
        return 0.0
    import torch

    return torch.cuda.memory_allocated() / _MIB


def lack_of_memory(config: PredictorConfig, loaded_mib: float) -> str:
    """Return why as many actors as share the card of this process do not fit into it, or ''.

    Args:
        config: The actor, which has worked.
        loaded_mib: What its tensors took once the model was loaded.
    """
    if not config.num_gpus:
        return ""
    import torch

    from pipeline.inference.runtimes.opening import dtype_of

    reserved_mib = torch.cuda.max_memory_reserved() / _MIB
    float32_mib = loaded_mib * 4 / dtype_of(config.spec.runtime, config.spec.precision).itemsize
    card_mib = torch.cuda.mem_get_info()[1] / _MIB
    reference_mib = 0.0 if config.spec.is_reference else float32_mib
    return share_problem(reserved_mib, reference_mib, config.num_gpus, card_mib)


def share_problem(
    reserved_mib: float, reference_mib: float, num_gpus: float, card_mib: float
) -> str:
    """Return why an actor does not fit into its share of a card, or ''.

    Args:
        reserved_mib: The most that torch's allocator had.
        reference_mib: The float32 model that predicts some rows again. It counts where actors share
            a card; one that has a card for itself can take its own model off it meanwhile.
        num_gpus: The actor's share.
        card_mib: The memory of the card.
    """
    share_mib = card_mib * min(1.0, num_gpus)
    needed_mib = CONTEXT_MIB + reserved_mib + (reference_mib if num_gpus < 1 else 0.0)
    if needed_mib <= share_mib:
        return ""
    return (
        f"an actor needs {needed_mib:,.0f} MiB of the card, with CUDA's own memory"
        f"{' and a float32 model to compare with' if num_gpus < 1 else ''}, and has "
        f"{share_mib:,.0f} MiB"
    )
