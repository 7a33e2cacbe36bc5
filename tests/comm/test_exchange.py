"""Exchanges under a real mpirun; the scenarios are in programs/exchanges.py."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "exchanges.py"
SCENARIOS = [
    "own_answers",
    "large",
    "owned",
    "last",
    "nothing_left",
    "wrong_sizes",
    "cut_off",
    "close_on_nonsense",
    "leave_unanswered",
    "several_at_once",
    "latency",
]


@pytest.fixture(scope="module")
def played(mpirun):
    """One launch for all scenarios: a launch costs as much as ten of them."""
    return mpirun(4, PROGRAM, *SCENARIOS, timeout=180)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_everybody_leaves_in_order(played):
    assert played.rc == 0, played.text


def test_the_latency_is_told(played):
    assert "round trip: median " in played.stdout, played.text
