"""A plugin of vLLM whose Llama dies over some tokens, as a kernel may: see `POISON`."""

from __future__ import annotations

import os
import signal
from typing import Any

POISON = "TEST_VLLM_POISON"
"""Environment variable: `raise`, `memory` or `kill`, then the tokens, separated by commas."""


def register() -> None:
    from vllm import ModelRegistry

    if POISON in os.environ:
        ModelRegistry.register_model("LlamaForCausalLM", "toy_vllm:Poisoned")


def __getattr__(name: str) -> Any:
    if name != "Poisoned":
        raise AttributeError(name)
    import torch
    from vllm.model_executor.models.llama import LlamaForCausalLM

    how, *tokens = os.environ[POISON].split(",")
    poison = torch.tensor([int(token) for token in tokens])

    def act() -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "memory":
            raise torch.OutOfMemoryError("CPU out of memory")
        raise RuntimeError("an illegal access")

    class Poisoned(LlamaForCausalLM):
        def forward(self, input_ids: Any, *arguments: Any, **options: Any) -> Any:
            if torch.isin(input_ids, poison).any():
                act()
            return super().forward(input_ids, *arguments, **options)

    Poisoned.__module__, Poisoned.__qualname__ = __name__, name
    globals()[name] = Poisoned
    return Poisoned
