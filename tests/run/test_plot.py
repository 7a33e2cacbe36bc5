"""Plotting: a picture from good runs, one line for bad ones."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_mpi.errors import EXIT_OK, EXIT_USAGE
from drl_mpi.run.metrics import COLUMNS, ProgressLog
from drl_mpi.run.plot import main, running_mean


def make_run(path: Path, rows: int, value: float = 0.5, own: tuple[str, ...] = ()) -> Path:
    path.mkdir(parents=True)
    log = ProgressLog(path / "progress.csv", own)
    log.resume_at(0)
    for i in range(1, rows + 1):
        log.append(dict.fromkeys((*COLUMNS, *own), value) | {"frames": 1000 * i, "time_s": i})
    log.close()
    return path


@pytest.mark.parametrize("x", ["frames", "time"])
def test_plots_runs_of_all_lengths(tmp_path: Path, x: str) -> None:
    pytest.importorskip("matplotlib")
    runs = [make_run(tmp_path / f"a{n}" / "same", n) for n in (1, 2, 200)]
    runs.append(make_run(tmp_path / "unknown", 3, math.nan))
    output = tmp_path / "curves.png"
    assert main([*map(str, runs), "--output", str(output), "--x", x]) == EXIT_OK
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.stat().st_size > 20_000


def test_it_has_a_name_if_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "good", 2)
    assert main(["good"]) == EXIT_OK
    assert capsys.readouterr().out == "wrote curves.png\n"
    assert (tmp_path / "curves.png").exists()


def test_a_systems_own_numbers_get_panels(tmp_path: Path) -> None:
    """Also beside a run that has none of them."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    plain = make_run(tmp_path / "plain", 5)
    central = make_run(tmp_path / "central", 5, own=("pps", "tps"))
    titles: list[list[str]] = []
    save = Figure.savefig

    def look(figure: Figure, *arguments: Any, **options: Any) -> None:
        titles.append([axes.get_title("left") for axes in figure.axes])
        save(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", look)
        for runs in ([plain], [plain, central]):
            output = str(tmp_path / "curves.png")
            assert main([*map(str, runs), "--output", output]) == EXIT_OK
    assert len(titles[0]) == 5
    assert titles[1] == [*titles[0], "predictions per second", "trained batches per second"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--output", "a.png"], "not a folder"),
        (["empty", "--output", "a.png"], "missing"),
        (["started", "--output", "a.png"], "no rows"),
        (["bad", "--output", "a.png"], "not a progress.csv"),
        (["good", "--output", "a.gif"], ".png, .pdf or .svg"),
        (["good", "--output", "nowhere/a.png"], "cannot write"),
        (["good", "--output"], "--output"),
        (["good", "--output", "a.png", "--x", "steps"], "--x"),
    ],
)
def test_bad_usage_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "good", 2)
    make_run(tmp_path / "started", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "progress.csv").write_text("a,b\n1,2\n")
    assert main(arguments) == EXIT_USAGE
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    run = make_run(tmp_path / "good", 2)
    assert main([str(run), "--output", str(tmp_path / "a.png")]) == EXIT_USAGE
    assert "pip install -e '.[plot]'" in capsys.readouterr().err


@given(
    values=st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), max_size=30),
    width=st.integers(1, 8),
)
def test_running_mean_is_the_obvious_one(values: list[float], width: int) -> None:
    expected = []
    for end in range(1, len(values) + 1):
        known = [v for v in values[max(0, end - width) : end] if not math.isnan(v)]
        expected.append(sum(known) / len(known) if known else math.nan)
    np.testing.assert_allclose(running_mean(np.array(values), width), expected, atol=1e-9)
