"""A program that does nothing in place of Ray's dashboard agent: a raylet ends when its agent ends.

A raylet runs it, with nothing but Python's own modules.
"""

import os
import time

_LOOK_S = 1.0


def main() -> None:
    """Do nothing while the raylet lives."""
    raylet = int(os.environ["RAY_RAYLET_PID"])
    while os.getppid() == raylet:
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
