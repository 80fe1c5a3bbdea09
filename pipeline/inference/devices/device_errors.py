"""Errors of a device: lack of memory, broken hardware, or a lost CUDA context.

None of them proves that a row is at fault: memory may be free later, and after the context is lost
all calls fail.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message, printable

_NO_MEMORY = (
    "out of memory",
    "out_of_memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "std::bad_alloc",
    "status_alloc_failed",
    "host_allocation_failed",
    "device_allocation_failed",
    "cublas_status_not_initialized",  # cuBLAS found no memory for its workspace
)
_OF_HARDWARE = (
    "ecc error",
    "xid",
    "fell off the bus",
    "fallen off the bus",
    "no cuda-capable device",
    "uncorrectable nvlink",
    "gpu is lost",
    "hardware error",
)
_MAX_CHARS = 300


class OutOfDeviceMemory(JobError):
    """A model or a batch does not fit into the free memory of its device."""


class TooLarge(OutOfDeviceMemory):
    """It would not fit into an empty device either, so there is nothing to wait for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of any library means lack of memory.

    It may be true after a lost context, too: call `require_context` first.
    """
    if isinstance(error, MemoryError | OutOfDeviceMemory):
        return True
    text = str(error).lower()
    is_torchs = type(error).__name__ == "OutOfMemoryError"
    return is_torchs or any(word in text for word in _NO_MEMORY)


def require_context(error: BaseException, probe: Callable[[], object], card: str = "a GPU") -> None:
    """End this process, exit code 1, if an error has lost the CUDA context.

    The crash mark of its slice stays, so the next attempt finds the row at fault in a child.

    Args:
        error: The error that was raised.
        probe: Waits for the GPU's work; raises if the context is lost.
        card: The name of the GPU.

    Raises:
        InfraError: The hardware has failed, so no other process on this card would do better.
    """
    try:
        probe()
    except Exception as lost:  # noqa: BLE001  # every call fails, with any error
        problem = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
        place = f"{card} of {socket.gethostname()}"
        if any(word in f"{error} {lost}".lower() for word in _OF_HARDWARE):
            raise InfraError(
                f"{place} has failed ({problem}); finished slices are kept: run again without this "
                "card or this node"
            ) from error
        end_process(f"{place}: its CUDA context is lost ({problem})")


def end_process(why: str) -> None:
    """Print why, and end this process at once, exit code 1: its device is unusable."""
    stderr = sys.__stderr__ or sys.stderr
    stderr.write(f"{printable(why)}: this process ends, and its slice is tried again\n")
    stderr.flush()
    os._exit(1)
