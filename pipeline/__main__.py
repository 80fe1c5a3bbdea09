"""Run the `pipeline` command by `python -m pipeline`.

Any Python 3 can read this file, since the Python of a cluster may be too old for the rest.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # the cluster's Python
    sys.stderr.write(
        f"error: this is Python {sys.version_info[0]}.{sys.version_info[1]}; the pipeline "
        "needs Python 3.11 or newer\n"
    )
    sys.exit(2)

from pipeline.commands.main import main

if __name__ == "__main__":
    main()
