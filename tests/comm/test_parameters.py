"""Publication of parameters under a real mpirun; the scenarios are in programs/publication.py."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

PROGRAM = Path(__file__).parent / "programs" / "publication.py"
SCENARIOS = [
    "rapid",
    "debts",
    "immutable",
    "stop_with_messages_under_way",
    "stop_before_anything",
    "newest_of_two",
    "close_without_stop",
    "steps",
    "strangers",
    "nobody",
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
