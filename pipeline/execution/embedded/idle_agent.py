"""Does nothing in place of Ray's dashboard agent: a raylet exits when its agent exits.

Run as a program by a raylet, with nothing but Python's own modules.
"""

import os
import time

_LOOK_S = 1.0


def main() -> None:
    """Do nothing for as long as the raylet lives."""
    raylet = int(os.environ["RAY_RAYLET_PID"])
    while os.getppid() == raylet:
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
