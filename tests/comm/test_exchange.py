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


@pytest.mark.alone
def test_a_round_trip_takes_little(mpirun):
    done = mpirun(2, PROGRAM, "latency", timeout=60)
    assert done.rc == 0, done.text
    assert "round trip: median " in done.stdout, done.text
