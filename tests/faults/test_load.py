"""The leader of 256 hosts with 8 ranks each, over loopback: it gathers them, hears them, stops them, and misses one
that is lost."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_leader_holds_the_load_of_2048_ranks():
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.leader", "--json", "--seconds", "5"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["flood_messages"] == 255 * 8 * 40 and facts["leader_mib"] < 200
    assert facts["gather_s"] < 60 and facts["signal_to_end_s"] < 60 and facts["lost_host_to_end_s"] < 60
