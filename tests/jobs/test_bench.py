"""jobs/bench.py: a tiny bench end to end, and the arithmetic behind its numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl_mpi.bench import main as bench_main
from drl_mpi.bench.command import BenchError, write_json
from drl_mpi.bench.config import (
    BENCHES,
    JOB_PRESETS,
    OURS,
    BatchSize,
    BenchImpala,
    bench_command_line,
    command_line,
    parse_bench,
)
from drl_mpi.bench.measure import JobRows, StageWindows, measure_job, measure_stage
from drl_mpi.bench.report import (
    assemble,
    message_bytes,
    summarise_job,
    summarise_service,
    summarise_stage,
    table,
)
from drl_mpi.bench.stage import STAGES, training
from drl_mpi.envs import EnvOptions, probe
from drl_mpi.errors import EXIT_OK, EXIT_USAGE
from drl_mpi.run.command_line import parse
from drl_mpi.systems.network import make_net

ROOT = Path(__file__).parents[2]
TINY = ["--env", "CartPole-v1", "--net", "auto", "--envs-per-actor", "4", "--batch-size", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["impala", "ga3c"])
def test_a_tiny_bench(system: str, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    launchers = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
    folder = tmp_path / "bench"
    words = [*TINY, "--seconds", "0.7", "--repeats", "2", "--log-seconds", "1"]
    words += ["--system", system, "--run-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "jobs/bench.py", *words],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(launchers)},
        capture_output=True,
        text=True,
        timeout=600,  # some 20 s on an idle machine
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    assert done.returncode == EXIT_OK, done.stdout + done.stderr
    result = json.loads((folder / "bench.json").read_text())

    stages, roof, job = result["stages"], result["roof"], result["end_to_end"]
    assert set(stages) == {"environment", "inference", "training"}
    for stage in stages.values():
        windows = np.array(stage["windows"])  # [processes, repeats, (steps, seconds)]
        assert windows.shape == (len(cores), 2, 2)
        assert (windows > 0).all()
        rate = np.median((windows[..., 0] / windows[..., 1]).mean(axis=0))
        assert stage["steps_per_s_per_core"] == pytest.approx(rate)
    total_s = sum(1 / stage["steps_per_s_per_core"] for stage in stages.values())
    assert roof["steps_per_s"] == pytest.approx(len(cores) / total_s)
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
    first, last = job["rows"][0], job["rows"][-1]
    rate = (last["steps"] - first["steps"]) / (last["time_s"] - first["time_s"])
    assert job["steps_per_s"] == pytest.approx(rate)
    assert result["efficiency"] == pytest.approx(rate * total_s / len(cores))
    assert result["efficiency"] > 0
    assert 0 <= job["actor_wait"] <= 1
    assert 0 <= job["learner_wait"] <= 1
    assert "--run-dir" in result["command"]

    assert (folder / "job-1" / "DONE").exists()
    words = ["steps/s per core", "all three", "efficiency", "policy lag", "bytes/step"]
    sizes = {stage: tuple(size.values()) for stage, size in result["batches"].items()}
    if system == "ga3c":
        words += ["predictions ", "answers ", "1 predictors, 1 trainers, 2 actors"]
        asked = round(job["predict_batch_mean"])
        assert 2 <= asked <= 8, "two actors have two groups of two environments each"
        assert sizes == {"environment": (2, 1), "inference": (asked, 1), "training": (8, 20)}
    else:
        assert sizes == {"environment": (4, 1), "inference": (4, 1), "training": (8, 20)}
    for word in words:
        assert word in done.stdout
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "pip install -e '.[plot]'" in done.stdout
    else:
        assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("impala", {}),
    ("impala", {"lockstep": True, "lambda_": 0.9, "core": "lstm", "actors": 3}),
    ("impala", {"env_options": EnvOptions(sticky=0.25, life_loss=False), "total_frames": 12_345}),
    ("impala", {"acting": "central", "groups": 4, "seconds": 3.0, "log_seconds": 2.0}),
    ("ga3c", {}),
    ("ga3c", {"tune": "on", "predictors": 2, "min_probability": 0.0, "repeats": 3}),
]


@pytest.mark.parametrize(("system", "changes"), CHANGES)
def test_job_and_stages_get_the_options_of_the_bench(
    system: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    for preset in BENCHES[system].values():
        config = dataclasses.replace(preset, **changes)
        assert parse_bench(bench_command_line(config)) == config
        job = config.job(tmp_path)
        assert parse(JOB_PRESETS[system], command_line(job)) == job
        for field in dataclasses.fields(job):
            if field.name not in {*OURS, "tune"}:
                assert getattr(job, field.name) == getattr(config, field.name)
        assert job.max_minutes * 60 == pytest.approx(config.log_seconds + 6 * config.seconds)


def test_the_default_is_impala_with_the_papers_setting() -> None:
    config = parse_bench([])
    assert isinstance(config, BenchImpala)
    assert (config.batch_size, config.unroll_length, config.envs_per_actor) == (32, 20, 32)


def test_the_tuner_is_off_unless_it_is_wanted(tmp_path: Path) -> None:
    for words in (["--system", "ga3c"], ["--acting", "central"]):
        assert parse_bench(words).job(tmp_path).tune == "off"
        assert parse_bench([*words, "--tune", "on"]).job(tmp_path).tune == "on"
    parse_bench([]).job(tmp_path).check()  # which refuses --tune off for local acting


def test_batches_of_central_acting_are_those_that_the_job_had() -> None:
    words = "--system=ga3c --envs-per-actor 24 --groups 3 --batch-size 16 --unroll-length 5"
    config = parse_bench(words.split())
    assert config.batch_sizes(21.6) == {
        "environment": BatchSize(8),
        "inference": BatchSize(22),
        "training": BatchSize(16, 5),
    }
    assert config.batch_sizes(0.2)["inference"] == BatchSize(1)
    assert {str(size) for size in config.batch_sizes(21.6).values()} == {"8", "22", "16 x 5"}
    local = parse_bench(["--preset", "small"]).batch_sizes()
    assert [str(size) for size in local.values()] == ["16", "16", "16 x 20"]


def test_central_and_local_results_lie_in_different_folders() -> None:
    words: list[list[str]] = [[], ["--acting", "central"], ["--system", "ga3c"]]
    assert len({parse_bench(each).path for each in words}) == 3


SIZES = {"impala": (6, 6, 4), "ga3c": (3, 5, 4)}


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("core", ["none", "lstm"])
@pytest.mark.parametrize("system", list(SIZES))
def test_a_stage_counts_its_steps(stage: str, core: str, system: str) -> None:
    words = [*TINY[:4], "--envs-per-actor", "6", "--batch-size", "4", "--core", core]
    words += ["--replay-fraction", "0"] if system == "impala" else []
    config = parse_bench(["--system", system, *words])
    n = config.batch_sizes(5.4)[stage].environments
    assert n == dict(zip(STAGES, SIZES[system]))[stage]
    unit = STAGES[stage](config, 1, n)
    expected = 4 * config.unroll_length if stage == "training" else n
    assert [unit(), unit()] == [expected, expected]


def test_replayed_unrolls_are_work_but_not_steps() -> None:
    config = BenchImpala(
        env="CartPole-v1", envs_per_actor=4, batch_size=8, replay_fraction=0.5, replay_capacity=16
    )
    assert training(config, 0, 8)() == 4 * 20


def test_a_stages_rate_is_the_median_of_means_over_cores() -> None:
    fast, slow = [(100, 1.0), (300, 2.0), (500, 1.0)], [(300, 1.0), (450, 1.0), (100, 2.0)]
    stage = summarise_stage(StageWindows(BatchSize(32), [fast, slow], 0.0))
    assert stage["window_steps_per_s_per_core"] == [200, 300, 275]
    assert stage["steps_per_s_per_core"] == statistics.median([200, 300, 275])
    assert stage["us_per_step"] == pytest.approx(1e6 / 275)


def job_rows() -> JobRows:
    columns = ("time_s", "steps", "updates", "actor_wait", "learner_wait")
    values = [(10, 1000, 10, 0.9, 0.9), (20, 3000, 30, 0.5, 0.2), (40, 9000, 90, 0.2, 0.8)]
    rows = [
        dict(zip(columns, map(float, row))) | {"policy_lag_mean": lag, "policy_lag_max": 2 * lag}
        for row, lag in zip(values, (9.0, 1.0, 5.0))
    ]
    rows[0]["return_mean"] = math.nan
    return JobRows(["job"], Path("runs/x"), "", rows, 0.0)


def test_the_jobs_numbers_leave_out_the_warm_up() -> None:
    job = summarise_job(job_rows(), action_repeat=4)
    assert job["steps_per_s"] == pytest.approx(8000 / 30)
    assert job["frames_per_s"] == pytest.approx(4 * 8000 / 30)
    assert job["actor_wait"] == pytest.approx((10 * 0.5 + 20 * 0.2) / 30)
    assert job["policy_lag_mean"] == pytest.approx((20 * 1 + 60 * 5) / 80)
    assert job["policy_lag_max"] == 10


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", summarise_job(job_rows(), action_repeat=4))
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["return_mean"] is None


SERVED = {
    "pps": 800.0,
    "tps": 10.0,
    "predict_batch_mean": 20.0,
    "predict_batch_p10": 16.0,
    "predict_batch_p90": 32.0,
    "request_wait_ms_p50": 1.5,
    "request_wait_ms_p99": 9.0,
    "unroll_lag_mean": 0.5,
    "predictors": 1.0,
    "trainers": 2.0,
    "active_actors": 3.0,
}


def test_the_services_batch_is_its_environments_over_its_batches() -> None:
    rows = [row | SERVED for row in job_rows().rows]
    rows[1] |= {"pps": 100.0, "predict_batch_mean": 2.0, "predictors": 4.0}
    found = summarise_service(rows)
    # 10 s with 100/s in 500 batches, 20 s with 800/s in 800.
    assert found["predict_batch_mean"] == pytest.approx((1000 + 16_000) / (500 + 800))
    assert found["pps"] == pytest.approx((10 * 100 + 20 * 800) / 30)
    assert found["predictors"] == pytest.approx(2)
    idle = [row | dict.fromkeys(SERVED, math.nan) for row in job_rows().rows]
    with pytest.raises(BenchError, match="predicted nothing"):
        summarise_service(idle)


def test_efficiency_is_the_job_over_cores_by_sum_of_costs() -> None:
    stages = {
        name: summarise_stage(StageWindows(BatchSize(8), [[(rate, 1.0)]] * 2, 0.0))
        for name, rate in (("environment", 1000), ("inference", 2000), ("training", 2000))
    }
    result = assemble(stages, summarise_job(job_rows(), 4), cores=2, action_repeat=4)
    roof = 2 / (1 / 1000 + 1 / 2000 + 1 / 2000)
    assert result["roof"]["steps_per_s"] == pytest.approx(roof)
    assert result["efficiency"] == pytest.approx(8000 / 30 / roof)
    assert result["stages"]["environment"]["share"] == pytest.approx(0.5)


def test_bytes_per_step_of_the_papers_setting() -> None:
    config = BENCHES["impala"]["paper"]
    spec = probe(config.env, config.env_options)
    net = make_net(config, spec)
    sizes = message_bytes(config, spec, net)
    # 3 frames from before row 0 and 21 rows for 20 steps, and some per cent for all the rest.
    assert 84 * 84 * 24 / 20 < sizes["unrolls"] < 1.02 * 84 * 84 * 24 / 20
    floats = sum(p.numel() for p in net.parameters())
    assert sizes["parameters_at_most"] == pytest.approx(4 * floats / 640, rel=1e-3)


def test_bytes_per_step_of_central_acting() -> None:
    config = parse_bench(["--acting", "central"])
    spec = probe(config.env, config.env_options)
    sizes = message_bytes(config, spec, make_net(config, spec))
    assert 84 * 84 < sizes["requests"] < 1.02 * 84 * 84
    assert 8 <= sizes["answers"] < 32
    assert sizes["steps_per_message"] == 16


def test_the_picture_and_the_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from drl_mpi.bench.picture import draw

    result = example()
    draw(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    text = table(result)
    assert "efficiency  0.27" in text
    assert "16 x 5" in text
    assert "+ python jobs/bench.py" in text
    assert "measure again on a quiet machine" in text
    assert "predictions" not in text
    result["end_to_end"] |= SERVED
    text = table(result)
    assert "800/s, 20.0 environments each time" in text
    assert "1 predictors, 2 trainers, 3 actors" in text


def example() -> dict[str, Any]:
    measured = StageWindows(BatchSize(16, 5), [[(1000, 1.0)]], 0.0)
    stages = {name: summarise_stage(measured) for name in STAGES}
    return {
        "title": "impala",
        "command": "python jobs/bench.py",
        "load_before": 3.0,
        "machine": {"cpu": "x", "cores": 3, "versions": dict.fromkeys(
            ("python", "torch", "numpy", "ale-py", "mpi"), "1"
        )},
        "bytes_per_step": {"unrolls": 1.0, "parameters_at_most": 2.0},
        **assemble(stages, summarise_job(job_rows(), 4), cores=3, action_repeat=4),
    }  # fmt: skip


def test_without_matplotlib_the_numbers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    monkeypatch.setattr(bench_main, "_bench", lambda *_: example())
    assert bench_main.main(["--run-dir", str(tmp_path)]) == EXIT_OK
    assert "pip install -e '.[plot]'" in capsys.readouterr().out
    assert (tmp_path / "bench.json").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--seconds", "0"], "--seconds"),
        (["--repeats", "0"], "--repeats"),
        (["--actors", "0"], "--actors"),
        ([*TINY, "--net", "deep"], "--net deep"),
        (["--run-dir", "/proc/nowhere"], "--run-dir"),
        (["--system", "a3c"], "--system"),
        (["--system", "ga3c", "--seconds", "0"], "--seconds"),
        (["--system", "ga3c", "--acting", "central"], "--acting"),
        (["--system", "ga3c", "--groups", "3"], "--groups"),
    ],
)
def test_bad_usage_is_one_line_before_any_measurement(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_main.main(arguments) == EXIT_USAGE
    said = capsys.readouterr()
    assert word in said.err
    assert said.err.count("\n") == 1


def test_it_refuses_to_run_under_mpirun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert bench_main.main(TINY) == EXIT_USAGE
    assert "without mpirun" in capsys.readouterr().err


def test_a_failing_stage_and_a_failing_job_are_told(tmp_path: Path) -> None:
    config = BenchImpala(env="CartPole-v1", run_dir=tmp_path)
    with pytest.raises(BenchError, match="'nonsense' ended with code 1"):
        measure_stage("nonsense", config, BatchSize(4), 1)
    job = tmp_path / "job.py"
    job.write_text("import sys; print('oh dear'); sys.exit(3)")
    with pytest.raises(BenchError, match=r"(?s)code 3.*oh dear"):
        measure_job(config, job)
