"""While a cluster grows, the node that is up first is not given the work of those to come."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.faults import crowding
from support.runs.cli import environment

pytestmark = pytest.mark.ray

CORES, LATER = 4, 80


@pytest.mark.slow
def test_the_first_node_of_a_cluster_that_grows_gets_no_more_decoders_than_cores():
    command = [sys.executable, crowding.__file__, str(CORES), str(LATER)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert 2 <= figures["decoder"] <= CORES
    assert figures["reader"] <= 2 * CORES
    assert figures["writer"] <= CORES
