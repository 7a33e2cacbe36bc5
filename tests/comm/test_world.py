"""Groups of ranks under a real mpirun; the scenarios are in programs/groups.py."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

PROGRAM = Path(__file__).parent / "programs" / "groups.py"
SCENARIOS = ["nobody", "share", "gather", "meet", "alone", "flag"]


@pytest.fixture(scope="module")
def played(mpirun):
    return mpirun(4, PROGRAM, timeout=60)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played, name):
    assert f"ok {name}\n" in played.stdout, played.text


def test_no_rank_is_left_behind(played):
    assert played.rc == 0, played.text
