"""What the errors of a device mean: lack of memory, broken hardware, or a lost CUDA context.

None of them is a row's fault by itself: memory may be there later, and after a lost context every
later call fails as well, whatever the row.
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
    "cublas_status_not_initialized",  # what cuBLAS says if there is no memory for its workspace
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
    """A model or a batch does not fit into the memory that its device has left."""


class TooLarge(OutOfDeviceMemory):
    """It would not fit into an empty device either: there is nothing to wait for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means lack of memory, whichever library raised it.

    Of a GPU with a lost context it may say yes too: ask `require_context` first.
    """
    if isinstance(error, MemoryError | OutOfDeviceMemory):
        return True
    text = str(error).lower()
    is_torchs = type(error).__name__ == "OutOfMemoryError"
    return is_torchs or any(word in text for word in _NO_MEMORY)


def require_context(error: BaseException, probe: Callable[[], object], card: str = "a GPU") -> None:
    """End this process, exit code 1, if an error has lost the CUDA context.

    The crash mark of what it works on stays, so the next attempt finds the row at fault in a child.

    Args:
        error: What was raised.
        probe: Waits for the GPU's work; raises if the context is lost.
        card: The name of the GPU.

    Raises:
        InfraError: The hardware failed: no process on this card will do.
    """
    try:
        probe()
    except Exception as lost:  # noqa: BLE001  # any error of any call: that is how it shows
        problem = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
        place = f"{card} of {socket.gethostname()}"
        if any(word in f"{error} {lost}".lower() for word in _OF_HARDWARE):
            raise InfraError(
                f"{place} has failed ({problem}); finished slices are kept: run again without this "
                "card or this node"
            ) from error
        end_process(f"{place}: its CUDA context is lost ({problem})")


def end_process(why: str) -> None:
    """Say why, and end this process at once, exit code 1: its device can do no more."""
    stderr = sys.__stderr__ or sys.stderr
    stderr.write(f"{printable(why)}: this process ends, and its slice is tried again\n")
    stderr.flush()
    os._exit(1)
