"""Let `python -m pipeline` be the `pipeline` command.

Any Python 3 can read this file: a submitted job may meet one that is too old for the rest.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # the cluster's Python
    sys.stderr.write(
        f"error: this Python is {sys.version_info[0]}.{sys.version_info[1]}, and the pipeline "
        "needs Python 3.11 or newer\n"
    )
    sys.exit(2)

from pipeline.commands.main import main

if __name__ == "__main__":
    main()
