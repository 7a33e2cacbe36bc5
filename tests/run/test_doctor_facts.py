"""What the doctor gathers: packages, files, pairs of ranks; ranks that do not answer; the table."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import h5py
import pytest

from drl_mpi.run.doctor import files, links, look, report
from drl_mpi.run.doctor.facts import Status, fail, ok, warn
from drl_mpi.run.doctor.testing import OPEN_MPI, rank, survey

ALL = list(look.PACKAGES)


def rows(*packages, **changes):
    row = {"version": "1.0", "error": "", "torch": None}
    return "".join(json.dumps(row | {"package": name} | changes) + "\n" for name in packages)


def test_packages_that_import():
    cuda = {"cuda": "13.0", "gpus": ["NVIDIA H100"]}
    found = look.read_imports(rows("torch", torch=cuda) + "chatter\n3\n" + rows(*ALL[1:]), "")
    assert found.versions == dict.fromkeys(ALL, "1.0")
    assert found.broken == {}
    assert (found.torch_cuda, found.gpu_names) == ("13.0", ("NVIDIA H100",))


def test_a_package_that_does_not_import():
    found = look.read_imports(rows(*ALL[1:]) + rows("torch", error="no libc10.so"), "")
    assert found.broken == {"torch": "no libc10.so"}


def test_an_import_that_crashes_is_the_next_packages_fault():
    found = look.read_imports(rows(*ALL[:2]), "crashed (SIGILL)")
    assert found.broken == {ALL[2]: "the import crashed (SIGILL)"}
    assert list(found.versions) == [*ALL[:2], *ALL[3:]]


def test_imports_that_take_too_long():
    found = look.software(timeout_s=0.01)
    assert found.broken["torch"] == "the import took more than 0 s"


def test_this_machine():
    here = look.machine(3)
    assert here.rank == 3
    assert here.cores
    assert here.memory > 0


def pairs_of(*counts):
    """For hosts with so many ranks each, block by block: (near, far) pairs."""
    hosts = [f"node{i}" for i, count in enumerate(counts) for _ in range(count)]
    pairs = links.choose_pairs(hosts)
    near = [pair for pair in pairs if hosts[pair[0]] == hosts[pair[1]]]
    return near, [pair for pair in pairs if pair not in near]


def test_pairs():
    assert pairs_of(1) == ([], [])
    assert pairs_of(4) == ([(0, 1), (2, 3)], [])
    assert pairs_of(3) == ([(0, 1), (1, 2)], [])
    assert pairs_of(2, 1, 2) == ([(0, 1), (3, 4)], [(0, 2), (2, 3)])
    assert links.choose_pairs(["a", "b", "a", "b"]) == [(0, 2), (0, 1), (1, 3)]


@pytest.mark.parametrize("counts", [[512], [64] * 8, [1] * 300, [16] * 40])
def test_pairs_are_few_and_spread(counts):
    near, far = pairs_of(*counts)
    assert len(near) <= 8
    assert len(far) <= 8
    last = sum(counts) - 1
    if far:
        assert far[0][0] == 0
        assert far[-1][1] == last - counts[-1] + 1
    if near:
        assert near[0] == (0, 1)
        assert max(near)[0] >= last - counts[-1]


def test_a_good_folder(tmp_path):
    (tmp_path / "theirs").write_text("token")
    found = files.look_at(tmp_path, "theirs", "token", time.sleep)
    assert found.error == found.lock_error == ""
    assert found.same
    assert found.free > 0
    assert found.sync_ms > 0
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("content", [None, "another run's"])
def test_a_folder_that_is_another_one(tmp_path, monkeypatch, content):
    monkeypatch.setattr(files, "SEEN_WITHIN_S", 0.05)
    if content is not None:
        (tmp_path / "theirs").write_text(content)
    assert not files.look_at(tmp_path, "theirs", "token", time.sleep).same


def test_another_hosts_file_may_take_its_time(tmp_path):
    def sleep(_seconds):
        (tmp_path / "theirs").write_text("token")

    assert files.look_at(tmp_path, "theirs", "token", sleep).same


def test_a_missing_folder(tmp_path):
    found = files.look_at(tmp_path / "none", "theirs", "token", time.sleep)
    assert not found.same
    assert "not a folder" in found.error


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "write_atomically", refuse)
    found = files.look_at(tmp_path, "theirs", "token", time.sleep)
    assert found.error == "Read-only file system"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_, **options):
        assert options["locking"] is True
        raise OSError("unable to lock file,\n errno = 38")

    monkeypatch.setattr(h5py, "File", refuse)
    assert files.hdf5_lock_error(tmp_path / "x") == "unable to lock file, errno = 38"


def test_kind_of_file_system(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nhome:/ /home nfs4 rw 0 0\nx /my\\040scratch lustre rw 0 0\n"
    )
    assert files.file_system(Path("/home/me/runs"), mounts) == "nfs4"
    assert files.file_system(Path("/homely"), mounts) == "ext4"
    assert files.file_system(Path("/my scratch/runs"), mounts) == "lustre"
    assert files.file_system(Path("/"), tmp_path / "none") == ""


def test_a_folder_made_for_the_test_is_removed(tmp_path):
    made = files.make(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    files.remove(made)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    files.remove(files.make(tmp_path / "mine"))
    assert (tmp_path / "mine").is_dir()


FINDINGS = [ok("MPI", "fine"), warn("/dev/shm", "word " * 30, "more of it"), fail("x", "y", "z")]


def test_the_table():
    lines = report.table(FINDINGS).splitlines()
    assert lines[0] == "ok    MPI       fine"
    assert lines[1].startswith("warn  /dev/shm  word word")
    assert lines[2].startswith("                word")
    assert lines[3] == "                -> more of it"
    assert lines[4:] == ["fail  x         y", "                -> z"]
    assert max(map(len, lines)) <= report.WIDTH
    assert report.summary(survey(), FINDINGS) == ["1 ok, 1 warn, 1 fail"]


def test_the_exit_code():
    assert report.exit_code(FINDINGS) == 1
    assert report.exit_code(FINDINGS[:2]) == 0


def test_json(tmp_path):
    facts = survey(rank(cores=frozenset({3, 1}), mpi=OPEN_MPI))
    report.write_json(tmp_path / "out.json", facts, FINDINGS)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["findings"][2] == {"status": Status.FAIL, "what": "x", "found": "y", "remedy": "z"}
    assert read["facts"]["ranks"][0]["cores"] == [1, 3]


CONVERSATION = """
import sys, time
from pathlib import Path
from drl_mpi.run.doctor import library, links, survey
from drl_mpi.run.doctor.checks import launch, messages
from drl_mpi.run.doctor.facts import Launch, Launcher, Mpirun
from drl_mpi.run.doctor.testing import rank

who, when = int(sys.argv[1]), sys.argv[2]
comm, mpi = library.start_on_all_ranks(Launcher.MPIRUN)
me = comm.Get_rank()
here = rank(me, f"node{me // 2}", mpi=mpi)
if me == 0:
    told = Launch(Launcher.MPIRUN, 0, mpi.size)
    began = time.monotonic()
    found = survey.lead(comm, told, here, Path(sys.argv[3]), Mpirun(), 1.0)
    print("took", time.monotonic() - began)
    print("silent", list(found.silent), "links", len(found.links), found.link_error)
    print(launch.ranks(found)[0].found)
    print(*[finding.found for finding in messages.latency(found)], flush=True)
    if found.broken:
        library.abort(3)
elif me == who and when == "at once":
    time.sleep(60)
else:
    if me == who:
        links.play = lambda *_: time.sleep(60)
    survey.follow(comm, here, 1.0)
library.finalize()
"""


@pytest.fixture
def converse(mpirun, tmp_path):
    """Four ranks, said to be on two hosts, of which one falls silent."""
    program = tmp_path / "conversation.py"
    program.write_text(CONVERSATION)

    def run(who, when):
        return mpirun(4, program, who, when, tmp_path / "runs", timeout=40)

    return run


def test_all_ranks_answer(converse):
    done = converse(-1, "never")
    assert done.rc == 0, done.text
    assert "silent [] links 3 \n" in done.stdout, done.text
    assert "4 on 2 hosts: 2 on node0, 2 on node1" in done.stdout


def test_a_rank_that_does_not_answer_is_named(converse):
    done = converse(2, "at once")
    assert done.rc == 3, done.text
    assert "silent [2]" in done.stdout, done.text
    assert "no answer within 1 s from rank 2\n" in done.stdout
    assert float(done.stdout.split()[1]) < 4, done.text


def test_messages_that_do_not_arrive_are_noticed(converse):
    done = converse(3, "in play")
    assert done.rc == 3, done.text
    assert "between ranks 2 (node1) and 3 (node1)" in done.stdout, done.text
    assert float(done.stdout.split()[1]) < 9, done.text
