"""The same bits over what fast networks use, UCX, as over what one machine needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UCX = {
    "OMPI_MCA_pml": "ucx",
    # Here it has shared memory and TCP only, for which it would leave the field to others.
    "OMPI_MCA_opal_common_ucx_tls": "any",
    "OMPI_MCA_opal_common_ucx_devices": "any",
}
COMMON = "--env CartPole-v1 --net mlp --precision fp32 --lockstep --run-dir run"
IMPALA = "--unroll-length 5 --batch-size 8 --envs-per-actor 4 --replay-fraction 0"
REPLAY = "--unroll-length 4 --replay-start 32 --replay-capacity 200 --batch-size 8"
JOBS = {  # ranks, options
    "impala": (3, f"--actors 2 {IMPALA} --total-frames 3000"),
    "gorilla": (
        4, f"--learners 1 --servers 2 --actors 1 --envs-per-actor 2 {REPLAY} --total-frames 1000",
    ),
    "ga3c": (3, "--actors 2 --envs-per-actor 4 --batch-size 8 --tune off --total-frames 3000"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ucx():
    """Whether Open MPI has it."""
    info = shutil.which("ompi_info", path=Path(sys.executable).parent)
    found = info and subprocess.run([info], capture_output=True, text=True, check=False).stdout
    if not found or "MCA pml: ucx" not in found:
        pytest.skip("this MPI was built without UCX")


@pytest.mark.usefixtures("ucx")
@pytest.mark.parametrize("job", JOBS)
def test_no_bit_depends_on_the_transport(job, start, bits, tmp_path):
    ranks, options = JOBS[job]
    usual, other = (
        start(f"{COMMON} {options}", tmp_path / name, ranks, env, job).wait()
        for name, env in (("ob1", {}), ("ucx", UCX))
    )
    for run in (usual, other):
        assert run.rc == 0, run.text
        assert (run.folder / "DONE").exists()
    assert bits(usual.folder) == bits(other.folder)
