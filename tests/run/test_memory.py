"""Memory at hand: what is free, or what a container may still take."""

import os

import numpy as np
import pytest

from drl_mpi.run.memory import available_bytes

MIB = 2**20
MEMINFO = """MemTotal:       16000000 kB
MemFree:          100000 kB
MemAvailable:    2048000 kB
Buffers:          500000 kB
HugePages_Total:       0
"""
STAT = "anon 1000\nfile 9999999\nshmem 77\nactive_file {}\ninactive_file {}\n"


@pytest.fixture
def measure(tmp_path):
    """measure(limit, current, cached) -> what would be available."""

    def run(limit=None, current=0, cached=(0, 0), stat=STAT):
        (tmp_path / "meminfo").write_text(MEMINFO)
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{current}\n")
        if stat is not None:
            (tmp_path / "memory.stat").write_text(stat.format(*cached))
        return available_bytes(tmp_path / "meminfo", tmp_path)

    return run


FREE = 2048000 * 1024


def test_without_a_container_it_is_what_is_free(measure):
    assert measure() == FREE
    assert measure("max", 10 * MIB) == FREE


def test_a_containers_limit_counts_where_it_is_less(measure):
    assert measure(700 * MIB, 200 * MIB) == 500 * MIB
    assert measure(10 * FREE, 200 * MIB) == FREE
    assert measure(700 * MIB, 701 * MIB) == 0


def test_cached_files_are_as_good_as_free(measure):
    """Else a container that has read many files would take no replay at all."""
    assert measure(700 * MIB, 690 * MIB, (200 * MIB, 300 * MIB)) == 510 * MIB


@pytest.mark.parametrize("stat", [None, "", "active_file 3\n", "active_file x\ninactive_file 1\n"])
def test_what_cannot_be_read_limits_nothing(measure, stat):
    assert measure(700 * MIB, 200 * MIB, stat=stat) == FREE
    assert measure("many", 200 * MIB) == FREE


def test_on_this_machine():
    found = available_bytes()
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert np.ones(min(found, 8 * MIB) // 8).sum() > 0
