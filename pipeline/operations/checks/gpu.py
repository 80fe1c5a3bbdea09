"""What `pipeline doctor` sees of the GPUs of a machine; computes nothing on them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping

from pipeline.inference.gpu_facts import absence_here, driver_version
from pipeline.operations.checks.findings import Finding

_ASK_S = 20.0
_NAME, _MODE, _ECC, _MEMORY = (
    "name",
    "compute_mode",
    "ecc.errors.uncorrected.volatile.total",
    "memory.total",
)
_SHARED, _UNKNOWN = ("Default", ""), "["
"""Of the modes those that let several processes in; and how `[N/A]` and the like begin."""


def look_at_gpus(*, is_wanted: bool) -> Iterator[Finding]:
    """Look at the GPUs of this machine.

    Args:
        is_wanted: A job asks for one here.
    """
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} sees none"
        if is_wanted or (torch.version.cuda and driver_version()):
            yield Finding("gpu", "warn", f"{found}: {absence_here()}")
        else:
            yield Finding("gpu", "ok", f"{found}: models run on the CPU")
        return
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("gpu", "ok", f"{', '.join(names)}; driver {driver_version() or 'unknown'}")
    yield from look_at_cards(_ask_smi)


def look_at_cards(ask: Callable[[], list[Mapping[str, str]]]) -> Iterator[Finding]:
    """Look at what the driver's own tool says of each card; nothing where there is none.

    Args:
        ask: Returns the facts of each card, as `nvidia-smi` names them.
    """
    wrong, cards = [], ask()
    for number, card in enumerate(cards):
        mode, errors = card[_MODE], card[_ECC]
        named = f"GPU {number} ({card[_NAME]})"
        if mode not in _SHARED and not mode.startswith(_UNKNOWN):
            hint = "actors that share it, and children that isolate a row, cannot start"
            wrong.append(f"{named}: compute mode {mode}: {hint}; set Default (nvidia-smi -c 0)")
        if errors.isdigit() and int(errors):
            hint = "reset or replace it before a run"
            wrong.append(f"{named}: {errors} memory errors that were not corrected: {hint}")
    if wrong:
        yield Finding("gpu state", "warn", "; ".join(wrong))
    elif cards:
        sizes = ", ".join(f"{card[_MEMORY]} MiB" for card in cards)
        yield Finding("gpu state", "ok", f"{sizes}, open to several processes, no memory errors")


def _ask_smi(command: str = "nvidia-smi") -> list[Mapping[str, str]]:
    fields = (_NAME, _MODE, _ECC, _MEMORY)
    asked = [command, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(  # noqa: S603  # the driver's own tool
            asked, capture_output=True, text=True, timeout=_ASK_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # an image may come without it
    rows = [[value.strip() for value in line.split(",")] for line in said.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
