"""Models without a weights file: their random parameters are seeded, and their tensors are pinned.

A factory with random parameters, or with files of its own, may give other tensors at each call. The
first actor of a plan stores a digest of its tensors beside the plan, in the output; an actor or a
resumed run with other tensors is refused, so that two models are never mixed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.cache.node_cache import tensors_digest
from pipeline.core.errors import InfraError, JobError
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_SEED_BYTES = 4


@contextlib.contextmanager
def seeded(name: str, salt: str = "") -> Iterator[None]:
    """Seed the random generators the same in every process, and restore them afterwards.

    Args:
        name: The name of the model, which decides the seed.
        salt: Changes the seed, to find out whether parameters are random.
    """
    import torch

    digest = hashlib.sha256(f"{name}{salt}".encode()).digest()
    seed = int.from_bytes(digest[:_SEED_BYTES], "big")
    plain, arrays = random.getstate(), np.random.get_state()
    has_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_gpu = torch.cuda.get_rng_state_all() if has_gpu else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(arrays)
            if has_gpu:
                torch.cuda.set_rng_state_all(on_gpu)


def warn_random_weights(factory: str) -> None:
    """Log a warning that the parameters of a factory's model may be random."""
    log.warning(
        "model.factory = %r without model.weights: parameters that it does not load itself are "
        "random (seeded: the same in every run); `pipeline plan` tells",
        factory,
    )


def pin(store: Store, path: str, module: torch.nn.Module, name: str) -> None:
    """Store the digest of a module's tensors, or compare it with the stored one.

    Raises:
        JobError: An earlier actor of the same plan had other tensors.
        InfraError: The stored digest is damaged.
    """
    found, token = tensors_digest(module), uuid.uuid4().hex
    data = json.dumps({"tensors_sha256": found, "model": name, "token": token}).encode()
    if store.create_once(path, data, token) is not CreateOutcome.OTHER:
        return
    try:
        kept = json.loads(store.read_bytes(path))["tensors_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InfraError(f"{store.url(path)}: damaged: {error}") from None
    if kept != found:
        raise JobError(
            f"model {name}: has other tensors than before in this very plan ({found[:12]}, not "
            f"{kept[:12]}), so predictions of two models would mix; name its weights in "
            "model.weights, or seed what its module draws and pin what it reads "
            "(examples/custom_model): changed code starts anew"
        )
