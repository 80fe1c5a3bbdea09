"""Runtime `eager`: plain torch. In fp32 it is the reference for all other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.inference.runtimes.runtime import BOTH, CPU, GPU, Runner, Runtime

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter


class Eager(Runtime):
    """The module itself."""

    name = "eager"
    precisions = {"fp32": BOTH, "tf32": GPU, "bf16": BOTH, "fp16": GPU}  # noqa: RUF012
    trial_order = 0
    is_static = False
    exports = False
    file_precisions = ("fp32",)
    file_devices = CPU  # as for the reference

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        from pipeline.inference.runtimes.packed_linear import pack_linear_layers

        loaded = exporter.load()
        if not exporter.is_on_gpu and getattr(loaded.module, "packs_linear_layers", False):
            pack_linear_layers(loaded.module, lambda: loaded.run(exporter.example))
        return Runner(loaded.run, is_static=False, module=loaded)


RUNTIME = Eager()
