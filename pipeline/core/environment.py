"""The environment variables that are ours: all that changes a run from outside its job file."""

from __future__ import annotations

ALLOW_IMPORT = "PIPELINE_ALLOW_IMPORT"
"""Module prefixes that a job's factories may name; read by `core/user_code`."""
DEBUG = "PIPELINE_DEBUG"
"""Errors come with their traceback; read by `process/terminal`."""
PLAIN_RAY = "PIPELINE_PLAIN_RAY"
"""Private names of Ray are left alone; read by `execution/private_names`."""
FAILPOINT = "PIPELINE_FAILPOINT"
"""Where a test ends the process; read by `process/failpoints`."""
SUBMITTED = "PIPELINE_SUBMITTED"
"""The job file is a copy that goes with the cluster's job, so no command here does the same again;
read by `commands/operation`, set by `execution/submit`."""
