"""jobs/doctor.py as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drl_mpi.run import slurm
from drl_mpi.run.doctor import main as doctor

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "doctor.py"
LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")


def alone(*words, **variables):
    """The job without a launcher; (exit code, stdout, stderr)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    done = subprocess.run(
        [sys.executable, JOB, *map(str, words)],
        capture_output=True, text=True, timeout=60, env=kept | variables, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def lines(table):
    """{what: (status, text)} of the lines that begin with a status."""
    rows = [line.split(None, 1) for line in table.splitlines() if line[:1] not in ("", " ")]
    rows = [(status, *rest[0].split("  ", 1)) for status, *rest in rows if status in STATUSES]
    return {what.strip(): (status, text.strip()) for status, what, text in rows}


STATUSES = ("ok", "warn", "fail")


def test_under_mpirun(mpirun, tmp_path):
    folder, output = tmp_path / "new" / "runs", tmp_path / "out.json"
    ulfm = {"OMPI_MCA_mpi_ft_enable": "1"}  # as mpirun --with-ft ulfm says it
    done = mpirun(3, JOB, "--run-dir", folder, "--json", output, timeout=90, env=ulfm)
    assert done.rc == 0, done.text
    table = lines(done.stdout)
    assert table["latency"][1].endswith("us on a host (worst of 2 pairs)"), done.text
    assert "GB/s on a host" in table["bandwidth"][1], done.text
    assert table["ranks"] == ("ok", f"3 on {os.uname().nodename}"), done.text
    assert table["launcher"] == ("ok", "Open MPI's mpirun, 3 ranks"), done.text
    assert table["ULFM"][1].startswith("active"), done.text
    assert done.stdout.count("latency") == 1, "one rank speaks"
    assert not folder.parent.exists(), "leaves no trace"
    result = json.loads(output.read_text())
    assert {finding["what"] for finding in result["findings"]} == set(table)
    assert [rank["rank"] for rank in result["facts"]["ranks"]] == [0, 1, 2]
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_alone(tmp_path):
    code, said, errors = alone("--run-dir", tmp_path)
    assert code == 0, said + errors
    table = lines(said)
    assert "latency" not in table
    assert table["packages"][1].startswith("torch ")
    assert said.endswith("start it under mpirun or srun to check communication\n")


def test_a_run_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").touch()
    code, said, errors = alone("--run-dir", tmp_path / "file" / "runs")
    assert code == 1, said + errors
    assert lines(said)["run folder"][0] == "fail"
    assert "Not a directory" in said


def test_without_an_mpi_library(tmp_path):
    """The rest of the table is still there."""
    code, said, errors = alone("--run-dir", tmp_path, MPI4PY_LIBMPI="/none/libmpi.so")
    assert code == 1, said + errors
    table = lines(said)
    assert table["MPI"][0] == "fail"
    assert "/none/libmpi.so" in said
    assert table["run folder"][0] == "ok"


def test_srun_without_pmix(tmp_path):
    """Task 0 of 4 that srun started; another task says nothing."""
    step = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_NTASKS": "4",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0",
    }  # fmt: skip
    code, said, errors = alone("--run-dir", tmp_path, **step)
    assert code == 1, said + errors
    assert lines(said)["ranks"][0] == "fail"
    assert "srun --mpi=pmix" in said
    assert "MPI" not in lines(said), "some libraries would end the process"
    others = alone("--run-dir", tmp_path, **(step | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}))
    assert others == (0, "", "")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("by_slurm", [False, True])
def test_a_launcher_of_another_mpi(tmp_path, by_slurm, rank):
    """PMI-2 and Open MPI's library: each rank is a world of one, and one of them speaks.

    MPICH's mpirun speaks PMI-2, and so does srun where that is Slurm's default.
    """
    told = {"PMI_RANK": rank, "PMI_SIZE": "2"}
    if by_slurm:
        told |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_LOCALID": rank}
    else:
        told |= {"MPI_LOCALRANKID": rank}
    code, said, errors = alone("--run-dir", tmp_path, **told)
    assert code == (1 if rank == "0" else 0), said + errors
    if rank == "0":
        assert "started 2, but MPI (Open MPI" in said
        assert lines(said)["ranks"][0] == "fail"
    else:
        assert said == ""


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--speed"], "--speed"),
        (["--timeout", "soon"], "'soon'"),
        (["--timeout", "0"], "above 0"),
        (["--timeout", "nan"], "above 0"),
        (["--json", "/none/out.json"], "/none/out.json"),
    ],
)
def test_wrong_options(words, what, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    assert doctor.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert what in said.err


def test_wrong_options_under_mpirun(mpirun):
    done = mpirun(2, JOB, "--speed")
    assert done.rc == 2, done.text
    assert done.stderr.count("unrecognized arguments: --speed") == 1, "one rank speaks"


def test_in_a_batch_script_it_starts_the_ranks(monkeypatch):
    """And passes on how they ended."""
    started = []

    def supervise(_, command, stop_file, *, hosts):
        assert (stop_file, hosts) == (None, 1)
        started.append(command)
        return 1

    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    job = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_TASKS_PER_NODE": "2",
        "SLURM_JOB_CPUS_PER_NODE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "2",
    }  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["jobs/doctor.py"])
    monkeypatch.setattr(doctor.StopSignals, "supervise", supervise)
    assert doctor.main(["--timeout", "5"]) == 1
    given = slurm.allocation()
    assert started == [slurm.launch_command(given, ["jobs/doctor.py", "--timeout", "5"])]
    monkeypatch.setattr(doctor.StopSignals, "supervise", lambda *_, **__: -15)
    assert doctor.main([]) == 128 + 15
