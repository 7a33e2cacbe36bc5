"""Relays of parameters under a real mpirun; the scenarios are in programs/relays.py."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.smoke, pytest.mark.alone]

PROGRAM = Path(__file__).parent / "programs" / "relays.py"
SCENARIOS = [
    "one_by_one",
    "slow_follower",
    "stop_before_anything",
    "a_relay_that_waits_for_something_else",
]


@pytest.fixture(scope="module")
def played(mpirun):
    """One launch for all: it costs as much as the scenarios together."""
    return mpirun(4, PROGRAM, *SCENARIOS, timeout=60)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_no_rank_is_left_behind(played):
    assert played.rc == 0, played.text
