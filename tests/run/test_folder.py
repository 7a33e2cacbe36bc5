"""The run folder: made once, checked early, ended by files that are never half there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run.folder import RunFolder, differences, write_atomically


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "name")
    folder.prepare()
    return folder


def test_prepare_makes_the_folders_and_nothing_else(folder: RunFolder) -> None:
    folder.prepare()
    assert sorted(path.name for path in folder.path.rglob("*")) == ["checkpoints", "logs", "tb"]
    assert folder.log(3) == folder.path / "logs" / "rank-3.log"


@pytest.mark.parametrize("where", ["runs", "runs/name", "runs/name/checkpoints"])
def test_a_file_in_the_way_is_a_usage_error(tmp_path: Path, where: str) -> None:
    obstacle = tmp_path / where
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("x")
    with pytest.raises(UsageError, match="run folder") as caught:
        RunFolder(tmp_path / "runs" / "name").prepare()
    assert str(obstacle) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_takes_no_files_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        RunFolder("/proc/name").prepare()  # refuses even root


def test_config_round_trip(folder: RunFolder) -> None:
    config = {"env": "ALE/Pong-v5", "sizes": (1, 2), "net": {"name": "deep"}, "where": Path("a/b")}
    folder.write_config(config)
    read = folder.read_config()
    assert read == {**config, "sizes": [1, 2], "where": "a/b"}
    assert differences(config, read) == ""


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\xff", "[" * 100_000])
def test_a_bad_config_is_a_usage_error(folder: RunFolder, text: str | None) -> None:
    if text is not None:
        folder.config.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.json") as caught:
        folder.read_config()
    assert "\n" not in str(caught.value)


def test_differences_name_fields_and_both_values() -> None:
    now = {"env": "ALE/Pong-v5", "seed": 1, "net": {"name": "deep", "core": None}, "new": True}
    stored = {"env": "ALE/Pong-v5", "seed": "1", "net": {"name": "nature", "core": None}}
    assert differences(now, stored) == (
        'seed: 1 now, "1" stored; net.name: "deep" now, "nature" stored; '
        "new: true now, absent stored"
    )


def test_differences_stay_on_one_short_line() -> None:
    now = {f"field{i}": "line\n" * 100 for i in range(50)}
    text = differences(now, {})
    assert "\n" not in text
    assert len(text) < 800
    assert text.endswith("and 44 more")


def test_stop(folder: RunFolder) -> None:
    assert not folder.stop_requested()
    (folder.path / "STOP").touch()
    assert folder.stop_requested()
    folder.clear_stop()
    folder.clear_stop()
    assert not folder.stop_requested()


def test_a_file_system_that_does_not_answer_is_no_stop(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "stat", stale)
    assert not folder.stop_requested()


def test_done(folder: RunFolder) -> None:
    assert not folder.is_done()
    folder.mark_done({"frames": 50_000, "return_mean": math.nan, "waits": [math.inf, 0.5]})
    assert folder.is_done()
    summary = json.loads(folder.done.read_text(), parse_constant=pytest.fail)
    assert summary == {"frames": 50_000, "return_mean": None, "waits": [None, 0.5]}
    folder.clear_done()
    assert not folder.is_done()


def test_done_appears_whole_or_not_at_all(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.mark_done({"frames": 1})
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "logs", "tb"]


def test_atomic_writes_sync_before_they_replace(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomically(folder.path / "x", b"data")
    assert calls == ["fsync", "replace", "fsync"]
    assert (folder.path / "x").read_bytes() == b"data"


def test_atomic_writes_respect_the_umask(folder: RunFolder) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(folder.path / "x", b"")
    finally:
        os.umask(old)
    assert (folder.path / "x").stat().st_mode & 0o777 == 0o640


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    hold = (
        "import sys; from drl_mpi.run.folder import RunFolder; RunFolder(sys.argv[1]).lock();"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="in use by a job that is still running"):
            RunFolder(tmp_path).lock()
        other.kill()
    RunFolder(tmp_path).lock()
    RunFolder(tmp_path).unlock()
