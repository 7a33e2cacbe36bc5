"""Learners over parameter servers under a real mpirun; scenarios are in programs/servers.py."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "servers.py"
SCENARIOS = [
    "outliers",
    "free_commands",
    "lockstep_commands",
    "resharding",
    "complete_reports",
    "reports_in_turn",
]


@pytest.fixture(scope="module")
def played(mpirun):
    """One launch for all scenarios: torch makes a launch dear."""
    return mpirun(5, PROGRAM, *SCENARIOS, timeout=180)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_everybody_leaves_in_order(played):
    assert played.rc == 0, played.text
