"""One Slurm cluster in a box for all tests of this folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.box import Box, missing


def _need_box() -> None:
    """Skips the test where a box cannot run, or fails it where it is known that one should."""
    if lacking := missing():
        if os.environ.get("CI") or os.environ.get("DRL_MPI_TEST_CLUSTER"):
            pytest.fail(lacking)
        pytest.skip(lacking)


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """A cluster of 3 nodes, each with 10 cores and 2 GPUs in name.

    Without what it needs tests are skipped; where the environment has ``CI`` or
    ``DRL_MPI_TEST_CLUSTER`` they fail.
    """
    _need_box()
    with (  # not pytest's folder: sockets need a short path
        tempfile.TemporaryDirectory(prefix="box", ignore_cleanup_errors=True) as root,
        Box(Path(root), nodes=3, cores=10, gpus=2) as box,
    ):
        yield box


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short path, for a box of one test; skips and fails like ``box``."""
    _need_box()
    with tempfile.TemporaryDirectory(prefix="box", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no jobs, and all nodes in use."""
    yield
    if "box" in request.fixturenames:
        box: Box = request.getfixturevalue("box")
        for name in box.names:
            box.revive_node(name)
        box.cancel_all()
