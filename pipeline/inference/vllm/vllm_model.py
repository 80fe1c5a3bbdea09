"""A model in vLLM: opened in this process, from the node's copy of its directory.

Prompts and outputs are token ids. vLLM reads safetensors and config.json and runs no code of the
directory; it needs no network and reports nothing.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.inference.devices.device_errors import (
    OutOfDeviceMemory,
    end_process,
    is_out_of_memory,
)
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.vllm.usable import DTYPES, require_usable_engine
from pipeline.models.directories.snapshot import local

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams
    from vllm.inputs import MultiModalInput

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a crash of vLLM ends the actor, as of torch
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # actors share the cores
}
_GPU_SHARE = 0.9
_MOST_CPU_BYTES = 4 << 30
"""Most memory for keys and values on the CPU; VLLM_CPU_KVCACHE_SPACE sets another one, in GiB."""
_MAX_CHARS = 300
Receive = Callable[[Sequence[int], Sequence[dict[int, float]]], bool]
"""Takes new tokens of a request, (T,), and per token the log probabilities that were asked for,
token -> number; returns whether the request has ended."""


class VllmModel(DeviceModel):
    """One model in vLLM on one device; its calls are made in the thread of the device."""

    _vllm: LLMEngine | None = None

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of a prompt and its output: those that fit into memory."""
        return int(self._llm.model_config.max_model_len)

    @property
    def num_tokens(self) -> int:
        """Return the size of the vocabulary."""
        return int(self._llm.model_config.get_vocab_size())

    @property
    def is_busy(self) -> bool:
        """Tell whether a request has not ended."""
        return bool(self._receivers)

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        receive: Receive,
        image: torch.Tensor | None = None,
    ) -> str:
        """Add a request; return its id.

        Args:
            prompt: With all tokens of the image, if it has one.
            params: What is asked.
            receive: Gets the tokens.
            image: As the library's class takes it, float32 (1, 3, H, W).
        """
        from vllm.inputs import tokens_input

        self._last += 1
        name = str(self._last)
        given = tokens_input(prompt) if image is None else self._with_image(prompt, image)
        self._llm.add_request(name, given, params)
        self._receivers[name] = receive
        return name

    def abort(self, ids: Sequence[str]) -> None:
        """Give up requests by their ids of `add`."""
        self._llm.abort_request([*ids])
        for name in ids:
            self._receivers.pop(name, None)

    def step(self) -> None:
        """Let vLLM make a step, and give new tokens to the receivers.

        An error here leaves vLLM in an unknown state, so it ends the process: the next attempt at
        the slice finds the row at fault in a child.
        """
        try:
            outputs = self._llm.step()
        except Exception as error:  # noqa: BLE001  # vLLM may raise anything
            cause = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
            end_process(f"vLLM has failed ({cause})")
        ended = []
        for output in outputs:
            receive = self._receivers.get(output.request_id)
            if receive is None:
                continue
            [made] = output.outputs
            chances = [
                {token: chance.logprob for token, chance in of_token.items()}
                for of_token in made.logprobs or ()
            ]
            has_ended = receive(made.token_ids, chances)
            if has_ended and not output.finished:
                ended.append(output.request_id)
            if has_ended or output.finished:
                del self._receivers[output.request_id]
        if ended:
            self._llm.abort_request(ended)

    def unload(self) -> None:
        self.call(self._close)
        super().unload()

    @property
    def _llm(self) -> LLMEngine:
        assert self._vllm is not None, "it is loaded again before anything runs"
        return self._vllm

    def _with_image(self, prompt: list[int], image: torch.Tensor) -> MultiModalInput:
        from vllm.inputs import mm_input
        from vllm.multimodal.inputs import (
            MultiModalFieldConfig,
            MultiModalKwargsItems,
            PlaceholderRange,
        )

        model, one = self._llm.model_config, torch.ones(1, dtype=torch.int64)
        is_image = torch.tensor(prompt) == model.hf_config.image_token_id
        first, last = is_image.nonzero()[[0, -1], 0].tolist()
        place = PlaceholderRange(first, last + 1 - first, is_image[first : last + 1])
        # Classes that take tiles also read their mask and number.
        values = {
            "pixel_values": image.to(model.dtype),
            "pixel_attention_mask": torch.ones_like(image[:, 0], dtype=torch.int64),
            "num_patches": one,
        }
        field = MultiModalFieldConfig.flat_from_sizes("image", one)
        items = MultiModalKwargsItems.from_hf_inputs(values, dict.fromkeys(values, field))
        digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        return mm_input(prompt, items, {"image": [digest]}, {"image": [place]})

    def _load(self) -> None:
        config = self.config
        is_on_gpu = self.gpu is not None
        require_usable_engine(config.spec, is_on_gpu=is_on_gpu, is_here=True)
        self._receivers: dict[str, Receive] = {}
        self._last = 0
        os.environ.update(_ENVIRONMENT)
        set_num_threads = torch.set_num_threads
        # vLLM's attention uses AMX for bf16 unasked; a product of torch asks the system for it.
        torch.ones(16, 16, dtype=torch.bfloat16).mm(torch.ones(16, 16, dtype=torch.bfloat16))
        try:
            self._vllm = self._made()
            torch.set_num_threads = set_num_threads  # vLLM replaces it on the CPU
            self._run_one()
        except Exception as error:
            self._close()
            cause = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
            raise (OutOfDeviceMemory if is_out_of_memory(error) else JobError)(
                f"model.engine = 'vllm': vLLM cannot run {config.spec.name}: {cause}"
            ) from error

    def _made(self) -> LLMEngine:
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        config, spec = self.config, self.config.spec
        assert spec.directory is not None, "it is a directory"
        options: dict[str, Any] = {}
        if self.gpu is not None:
            options["gpu_memory_utilization"] = _GPU_SHARE * config.num_gpus
        made = EngineArgs(
            model=str(local(spec.directory)),
            config_format="hf",
            model_impl="vllm",  # others change classes of transformers, which the reference needs
            load_format="safetensors",
            generation_config="vllm",
            trust_remote_code=False,
            structured_outputs_config={"backend": "guidance"},
            dtype=DTYPES[spec.precision],
            max_model_len=-1,  # as many as fit
            max_num_seqs=config.batch_size,
            enforce_eager=self.gpu is None,
            distributed_executor_backend="uni",
            disable_log_stats=True,
            seed=0,
            **options,
        ).create_engine_config(UsageContext.ENGINE_CONTEXT)
        if self.gpu is None and made.cache_config.kv_cache_memory_bytes is None:
            made.cache_config.kv_cache_memory_bytes = self._cache_bytes(made)
        return LLMEngine.from_vllm_config(made, disable_log_stats=True)

    def _cache_bytes(self, made: Any) -> int:
        """Return the memory of keys and values for full batches, or for one longest row."""
        model, parallel = made.model_config, made.parallel_config
        heads = model.get_num_kv_heads(parallel) * model.get_head_size()
        token_bytes = 2 * model.get_num_layers(parallel) * heads * model.dtype.itemsize
        block = made.cache_config.block_size
        tokens = max(self.config.batch_tokens, model.max_model_len)
        tokens += (self.config.batch_size + 1) * block
        return int(min(_MOST_CPU_BYTES, tokens * token_bytes))

    def _run_one(self) -> None:
        """Write a token, so that what vLLM cannot run here is an error of the job."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, detokenize=False, logprobs=0)
        prompt, image, spec = [0], None, self.config.spec
        if spec.input.text is None:
            assert spec.task.generation is not None, "it writes to an image"
            [slot] = spec.input.slots(self.limits).values()
            _, height, width, channels = slot.shape
            prompt = [*spec.task.generation.rules.start]
            image = torch.ones(1, channels, height, width)
        self.add(prompt, params, lambda *_: False, image)
        while self._llm.has_unfinished_requests():
            self._llm.step()
        self._receivers.clear()

    def _close(self) -> None:
        if self._vllm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._vllm.engine_core.shutdown()
        self._vllm = None
        gc.collect()
        cleanup_dist_env_and_memory()
