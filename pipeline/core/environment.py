"""Environment variables of this package: all that changes a run from outside its job file."""

from __future__ import annotations

ALLOW_IMPORT = "PIPELINE_ALLOW_IMPORT"
"""Module prefixes that a job's factories may name; read by `core/user_code`."""
DEBUG = "PIPELINE_DEBUG"
"""Show errors with their traceback; read by `process/terminal`."""
PLAIN_RAY = "PIPELINE_PLAIN_RAY"
"""Use no private names of Ray; read by `execution/private_names`."""
FAILPOINT = "PIPELINE_FAILPOINT"
"""The point at which a test ends the process; read by `process/failpoints`."""
SUBMITTED = "PIPELINE_SUBMITTED"
"""The job file is a copy that goes with the cluster's job, so no command here does the same again;
read by `commands/operation`, set by `execution/submit`."""
