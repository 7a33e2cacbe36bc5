"""The tools of drl_mpi.bench: their arithmetic, their tables, and what they refuse."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drl_mpi.acting.tuner import Setting
from drl_mpi.bench import asking, latency, runs, sweep, versus
from drl_mpi.bench.command import BenchError, provenance, split_job_options, write_json
from drl_mpi.bench.settled import fixed, settled_since, trace
from drl_mpi.bench.tables import columns, spread
from drl_mpi.errors import EXIT_OK, EXIT_USAGE
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.metrics import COLUMNS, ProgressLog
from drl_mpi.systems.central import COLUMNS as CENTRAL

NAN = math.nan


def row(time_s: float, steps: float, **others: float) -> runs.Row:
    return (
        dict.fromkeys((*COLUMNS, *CENTRAL), NAN)
        | {"time_s": time_s, "steps": steps, "updates": steps / 10}
        | others
    )


# -- what they share --------------------------------------------------------------------------


def test_columns_end_alike() -> None:
    lines = columns(("what", "of", "n"), [("a", "longer", "1,000"), ("bb", "c", "2")], left=2)
    assert lines == ["what  of          n", "a     longer  1,000", "bb    c           2"]


def test_a_single_rate_has_no_range() -> None:
    assert spread([1234.4]) == ""
    assert spread([1500.0, 1234.4]) == "1,234 to 1,500"


def test_what_follows_two_dashes_is_the_jobs() -> None:
    assert split_job_options(["--a", "1", "--", "--env", "x"]) == (["--a", "1"], ["--env", "x"])
    assert split_job_options(["--a"]) == (["--a"], [])


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [NAN, (1.0, math.inf)], 3: {"y": Path("z")}})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": [None, [1, None]],
        "3": {"y": "z"},
    }


def test_rows_are_read_and_the_warm_up_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = ProgressLog(folder.progress, CENTRAL)
    log.resume_at(-1)
    for t in range(1, 6):
        log.append(row(t, 100 * t, frames=float(100 * t), pps=50.0))
    log.close()
    rows = runs.rows_of(folder)
    assert [r["time_s"] for r in runs.after(rows, 1.5)] == [3, 4, 5]
    assert runs.throughput(runs.after(rows, 1.5)) == pytest.approx(100)
    with pytest.raises(BenchError, match=r"1 rows after its first 3\.5 s"):
        runs.after(rows, 3.5)


def test_means_are_weighted_by_time_and_leave_out_what_is_unknown() -> None:
    rows = [row(0, 0, pps=9e9), row(1, 10, pps=100.0), row(3, 20), row(6, 90, pps=300.0)]
    assert runs.mean(rows, "pps") == pytest.approx((1 * 100 + 3 * 300) / 4)
    assert math.isnan(runs.mean(rows, "tps"))
    found = runs.summary(rows)
    assert found["steps_per_s"] == pytest.approx(15)
    assert found["updates_per_s"] == pytest.approx(1.5)
    assert found["seconds"] == 6
    assert math.isnan(found["predict_batch_mean"])


def job(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "job.py").write_text(text)
    return [sys.executable, str(tmp_path / "job.py")]


def test_a_job_is_stopped_once_its_rows_are_enough(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare()
    log = ProgressLog(folder.progress)
    log.append(dict.fromkeys(COLUMNS, 1.0))
    log.close()
    waits = "import pathlib, sys, time\nstop = pathlib.Path(sys.argv[1])\n"
    waits += "while not stop.exists(): time.sleep(0.05)\nsys.exit(75)"
    command = [*job(tmp_path, waits), str(folder.stop)]
    seen: list[int] = []

    def enough(rows: list[runs.Row]) -> bool:
        seen.append(len(rows))
        return len(seen) == 2

    runs.run_job(command, tmp_path / "log", folder, enough)
    assert seen == [1, 1]


def test_a_failing_job_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = job(tmp_path, "print('oh dear'); raise SystemExit(3)")
    with pytest.raises(BenchError, match=r"(?s)code 3.*oh dear"):
        runs.run_job(command, tmp_path / "log", RunFolder(tmp_path / "run"))


# -- versus -----------------------------------------------------------------------------------


def test_a_worker_that_acts_for_itself_consumes_its_predictions() -> None:
    assert versus.predictions({"steps_per_s": 7.0, "pps": NAN})["predictions_per_s"] == 7
    assert versus.predictions({"steps_per_s": 7.0, "pps": 8.0})["predictions_per_s"] == 8


def versus_runs() -> dict[str, list[runs.Row]]:
    rates = {versus.LONE: (90.0, 100.0, 110.0), versus.OURS: (400.0, 500.0, 500.0)}
    rates[versus.CENTRAL] = (450.0, 1000.0, 550.0)
    found = {}
    for contender, each in rates.items():
        numbers = runs.summary([row(0, 0), row(10, 10)])
        found[contender.name] = [numbers | {"predictions_per_s": rate} for rate in each]
    return found


def test_versus_has_ratios_of_medians_and_of_single_turns() -> None:
    found = versus.ratios(versus_runs())
    lone, ours = (found[f"GA3C / {each.name}"] for each in (versus.LONE, versus.OURS))
    assert lone["ratio"] == pytest.approx(5.5)
    assert lone["turns"] == pytest.approx([5, 10, 5])
    assert ours["ratio"] == pytest.approx(1.1)
    found = {"deep": versus_runs()}
    result = provenance(["x"]) | {
        "options": {"repeats": 3, "seconds": 30.0},
        "runs": found,
        "ratios": {"deep": versus.ratios(found["deep"])},
        "tuning": {"deep": {"settled_s": None, "predictors": 1, "trainers": 2, "actors": 3}},
    }
    text = versus.table(result)
    assert "550  450 to 1,000   5.50" in text
    assert "deep: GA3C / A3C, our defaults: 1.10 (1.10 to 2.00 in single turns)" in text
    assert "1 predictor, 2 trainers, 3 actors (did not settle)" in text


# -- sweep ------------------------------------------------------------------------------------


def tuned_rows(settled_from: float = 100.0) -> list[runs.Row]:
    """Trainers go from 1 to 2 at 50 s; 10 steps/s more from then on."""
    rows, steps = [], 0.0
    for t in range(1, 121):
        steps += 10 + 10 * (t > 50)
        setting = {"predictors": 1.0, "trainers": 1.0 + (t > 50), "active_actors": 3.0}
        rows.append(row(t, steps, settled=float(t >= settled_from or t in (20, 21)), **setting))
    return rows


def test_a_setting_has_its_options() -> None:
    words = "--tune off --predictors 1 --trainers 2 --actors 3"
    assert fixed(Setting(1, 2, 3)) == words.split()


def test_the_tuners_way_is_read_from_its_rows() -> None:
    way = trace(tuned_rows(), last_s=30)
    assert way.setting == Setting(1, 2, 3)
    assert (way.first_settled_s, way.settled_s) == (20, 100)
    assert way.rate == pytest.approx(20)
    assert way.changes == [(1, Setting(1, 1, 3)), (51, Setting(1, 2, 3))]
    assert settled_since([]) is None


def test_a_tuner_that_does_not_settle_is_judged_by_what_it_did_most() -> None:
    rows = tuned_rows(settled_from=999)
    for each in rows[-5:]:
        each["predictors"] = 2.0
    way = trace(rows, last_s=30)
    assert way.settled_s is None
    assert way.setting == Setting(1, 2, 3)


def sweep_options(*words: str) -> Namespace:
    return sweep._parse(list(words))


def sweep_runs() -> list[sweep.Run]:
    numbers = runs.summary([row(0, 0), row(10, 10)])

    def run(setting: Setting, rate: float, final: bool = False) -> sweep.Run:
        return sweep.Run(setting, final, numbers | {"steps_per_s": rate})

    lucky, best, tuned = Setting(3, 1, 3), Setting(2, 2, 3), Setting(1, 2, 3)
    grid = [run(lucky, 40.0), run(best, 30.0), run(tuned, 20.0), run(Setting(1, 1, 1), 35.0)]
    finals = [run(each, rate, True) for each, rate in ((lucky, 10.0), (best, 25.0), (tuned, 20.0))]
    return [*grid, *finals, run(best, 27.0, True)]


def test_what_was_measured_again_is_judged_by_that_alone() -> None:
    rates = sweep.medians(sweep_runs())
    assert list(rates.values()) == [35, 26, 20, 10]
    result = sweep.assemble(sweep_options(), sweep_runs(), tuned_rows())
    assert result["best"] == {"predictors": 2, "trainers": 2, "actors": 3, "steps_per_s": 26}
    assert result["tuned_setting_of_best"] == pytest.approx(20 / 26)
    assert result["tuned"]["settled_s"] == 100
    # The last minute begins at 60 s: all of it with two trainers.
    assert result["tuned_run_of_best"] == pytest.approx(20 / 26)
    without = [run for run in sweep_runs() if not run.final]
    assert sweep.assemble(sweep_options(), without, tuned_rows())["best"]["steps_per_s"] == 40


def test_the_sweeps_table_and_files(tmp_path: Path) -> None:
    result = provenance(["x"]) | sweep.assemble(sweep_options(), sweep_runs(), tuned_rows())
    text = sweep.table(result)
    assert "best fixed setting: 2 predictors, 2 trainers, 3 actors: 26 steps/s" in text
    assert "settled after 100 s, 1 changes seen" in text
    assert "its setting, fixed: 20 steps/s, 0.77 of the best" in text
    assert "25 to 27" in text
    lines = sweep.as_csv(sweep_runs()).splitlines()
    assert lines[0].startswith("predictors,trainers,actors,final,seconds,steps_per_s,")
    assert lines[5].startswith("3,1,3,1,10,10,")
    assert len(lines) == 9
    pytest.importorskip("matplotlib")
    sweep.draw(result, tuned_rows(), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_order_of_the_grid_is_random_but_seeded() -> None:
    grid = [Setting(p, t, 1) for p in range(1, 4) for t in range(1, 4)]
    assert sweep.shuffled(grid, 1) == sweep.shuffled(grid, 1)
    assert sweep.shuffled(grid, 1) != sweep.shuffled(grid, 2)
    assert set(sweep.shuffled(grid, 1)) == set(grid)


def test_the_tuner_stays_within_the_grid() -> None:
    options = sweep_options("--actors", "1", "4", "--trainers", "2", "--", "--env", "CartPole-v1")
    words = sweep.tuned_options(options)
    assert words[words.index("--max-trainers") + 1] == "2"
    assert words[words.index("--max-predictors") + 1] == "3"
    assert words[words.index("--actors") + 1] == "4"
    assert options.job == ["--env", "CartPole-v1"]


# -- latency ----------------------------------------------------------------------------------


def test_a_round_trip_is_the_sum_of_its_parts() -> None:
    served, answered, trips = [], [], []
    for i in range(100):
        t = float(i)
        served.append((1, 0, t + 100e-6, t + 130e-6, t + 630e-6))
        answered.append(t + 650e-6)
        trips.append((t, t + 750e-6))
    report = {"alone": [400e-6] * 5, "served": served, "answered": answered, "trips": [[trips]]}
    found = latency.summarise_trips(report)
    assert found["requests"] == 75
    assert found["round_trip_us"]["p50"] == pytest.approx(750)
    assert found["beyond_us"] == pytest.approx(350)
    assert found["around_us"] == pytest.approx(250)
    parts = [part["p50"] for part in found["parts_us"].values()]
    assert parts == pytest.approx([100, 30, 500, 20, 100], abs=1e-3)
    case = {"net": None, "envs": 1, "gap_ms": 0.0}
    result = provenance(["x"]) | {"target_us": 300.0, "cases": [case | found]}
    assert "around the prediction, gap 0 ms: kept (at most 250)" in latency.trips_table(result)
    idle = case | found | {"gap_ms": 5.0, "around_us": 900.0}  # the learner has gone to sleep
    said = latency.trips_table(result | {"cases": [case | found, idle]})
    assert "gap 0 ms: kept (at most 250)" in said
    slow = latency.trips_table(result | {"cases": [case | found | {"around_us": 301.0}]})
    assert "missed (at most 301)" in slow
    with pytest.raises(BenchError, match="no request was answered"):
        latency.summarise_trips(report | {"served": []})


def test_starvation_is_seen() -> None:
    def trips(wait: float) -> list[tuple[float, float]]:
        return [(t * wait, (t + 1) * wait) for t in range(int(10 / wait))]

    lanes = [[trips(0.01)] * 98, [trips(0.01), trips(1.0)]]
    report = {"trips": lanes, "waits": [0.01] * 1000, "served": [(1, 0, 0.0, 9.0, 9.1)] * 4}
    found = latency.summarise_crowd(report)
    assert found["seen_by_actors"]["p50_ms"] == pytest.approx(10)
    assert found["seen_by_actors"]["max_ms"] == pytest.approx(1000)
    assert found["answers_per_lane"]["fewest"] == 8
    assert found["answers_per_lane"]["most"] == pytest.approx(750, abs=1)
    case = {"askers": 2, "lanes": 50, "envs": 1}
    result = provenance(["x"]) | {"target_ratio": 5.0, "cases": [case | found]}
    assert "the median, as seen by actors: kept" in latency.crowd_table(result)


@pytest.mark.slow
def test_requests_go_round_for_real(tmp_path: Path) -> None:
    one = asking.measure(asking.Case(seconds=0.3), tmp_path)
    found = latency.summarise_trips(one)
    assert found["requests"] > 10
    parts = [part["p50"] for part in found["parts_us"].values()]
    assert min(parts) >= 0, "all ranks share a clock"
    words = ["--actors", "40", "--ranks", "2", "--seconds", "0.5", "--output", str(tmp_path)]
    assert latency.main(words) == EXIT_OK
    (case,) = json.loads((tmp_path / "starvation.json").read_text())["cases"]
    assert case["answers_per_lane"]["fewest"] >= 1
    assert case["requests_per_prediction"] > 1
    assert "answers per actor" in (tmp_path / "starvation.txt").read_text()


# -- what they refuse -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        (versus.main, ["--repeats", "0"], "--repeats"),
        (versus.main, ["--nets", "large"], "--net"),
        (versus.main, ["--", "--learners", "0"], "learners"),
        (versus.main, ["--nonsense"], "--nonsense"),
        (versus.main, ["--output", "/proc/nowhere"], "--output"),
        (sweep.main, ["--trainers", "0"], "--trainers"),
        (sweep.main, ["--actors", "0"], "actors"),
        (sweep.main, ["--system", "a3c"], "--system"),
        (sweep.main, ["--system", "impala", "--", "--batch-size", "3"], "--replay-fraction"),
        (latency.main, ["--actors", "10", "--ranks", "4"], "--ranks"),
        (latency.main, ["--seconds", "0"], "--seconds"),
    ],
)
def test_bad_usage_is_one_line_before_any_measurement(
    tool: Callable[[list[str]], int],
    arguments: list[str],
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool(arguments) == EXIT_USAGE
    said = capsys.readouterr()
    assert word in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("tool", [versus.main, sweep.main, latency.main])
def test_they_refuse_to_run_under_mpirun(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert tool([]) == EXIT_USAGE
    assert "without mpirun" in capsys.readouterr().err
