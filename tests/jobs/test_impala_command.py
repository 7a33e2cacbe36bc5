"""The command line: help, presets, and one line for whatever cannot work."""

import dataclasses
import io
import itertools
import re
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from drl_mpi.run import launch, relaunch
from drl_mpi.run.command_line import parse
from drl_mpi.systems.impala import PRESETS

STARTED = 42
"""What the replaced launcher returns."""


@pytest.fixture
def impala(monkeypatch, tmp_path, tiny):
    """``impala(options)``: up to the point where ranks would start; that is code 42."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jobs/impala.py"])
    monkeypatch.setattr(relaunch.StopSignals, "supervise", lambda *_, **__: STARTED)
    monkeypatch.setattr(launch, "launched_ranks", lambda: None)
    monkeypatch.setattr(relaunch.RunFolder, "is_done", lambda _self: False)

    def run(options, defaults=tiny):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            launch.main(PRESETS, [*defaults.split(), *options.split()])
        return SimpleNamespace(rc=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


def test_help_lists_every_option_with_its_default(impala):
    run = impala("--help", "")
    assert run.rc == 0
    assert run.stderr == ""
    text = " ".join(run.stdout.split())
    for field in dataclasses.fields(PRESETS["small"]):
        names = [field.name]
        if field.name == "env_options":
            names = [inner.name for inner in dataclasses.fields(PRESETS["small"].env_options)]
        for name in names:
            option = "--" + name.rstrip("_").replace("_", "-")
            assert re.search(f" {option}_?[ ,]", text), option
    options = len(dataclasses.fields(PRESETS["small"])) - 1
    options += len(dataclasses.fields(PRESETS["small"].env_options))
    assert text.count("(default:") == options
    assert "--preset small | paper" in text


@pytest.mark.parametrize("width", [70, 100, 200])
def test_help_fills_its_lines(impala, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = impala("--help", "").stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert max(len(line) for line in lines if not line.startswith(" ")) <= 100
    assert "`" not in text
    assert "{None}" not in text
    for line, following in itertools.pairwise(lines):
        assert line == line.rstrip()
        words = line[24:]
        if line.startswith(" " * 24) and following.startswith(" " * 24):
            assert 24 + len(words) + 1 + len(following.split()[0]) > width - 2, line
    assert "falls linearly to 0 at --total-frames" in " ".join(text.split())


def test_the_paper_preset_shows_in_help_and_gives_way_to_options(impala):
    text = " ".join(impala("--preset paper --help", "").stdout.split())
    assert "(paper: 32). (default: 32)" in text
    assert "(paper: rmsprop). (default: rmsprop)" in text
    config = parse(PRESETS, ["--preset=paper", "--batch-size", "16"])
    assert (config.batch_size, config.optimizer) == (16, "rmsprop")


def test_good_options_start(impala):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert impala("").rc == STARTED
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


REFUSED = {
    "--total-frame 3e4": "Unrecognized options: --total-frame, 3e4; did you mean --total-frames?",
    "--lerners=2 --batch 4 --foo 1 --sed 3 --gama 1": "--learners --batch-size --seed --gamma?",
    "--total-frames 40M": "'40M' is not a number; write 2000000, 2_000_000 or 2e6",
    "--env CartPole-v9": "unknown environment 'CartPole-v9'",
    "--env Nowhere-v0": "unknown environment",
    "--env nomodule:Nowhere-v0": "cannot import 'nomodule'",
    "--env .:Nowhere-v0": "'.'",
    "--env Pendulum-v1": "allowed: Discrete",
    "--env Blackjack-v1": "allowed: Box and Discrete",
    "--env PongNoFrameskip-v4": "ALE/Pong-v5",
    "--net nature": "use net 'mlp'",
    "--env ALE/Pong-v5": "use net 'shallow'",
    "--sticky 0.25": "not an Atari game",
    "--sticky 2": "sticky is 2.0",
    "--stack 0": "stack is 0",
    "--learners 0": "learners = 0",
    "--learners 2": "every learner needs an actor",
    "--actors 0": "learners do not act",
    "--actors 5000": "4096",
    "--actors x": "Error parsing --actors: invalid literal for int() with base 10: 'x'; see --help",
    "--batch-size 0": "--batch-size is 0",
    "--batch-size 3 --replay-fraction 0.5": "whole number",
    "--batch-size 3 --lockstep": "whole batches",
    "--lockstep --learners 2 --actors 3": "spread evenly",
    "--replay-fraction 1": "--replay-fraction is 1.0",
    "--total-frames 1.5": "whole number",
    "--total-frames x": "--total-frames",
    "--total-frames 0": "--total-frames is 0",
    "--learning-rate nan": "--learning-rate is nan",
    "--gamma 1.5": "--gamma is 1.5",
    "--clip-c 2": "--clip-rho",
    "--seed -1": "--seed is -1",
    "--optimizer sgd": "'rmsprop', 'adam'",
    "--bogus 3": "--bogus",
    "--preset nope": "allowed: small, paper",
    "--resume nowhere.h5": "does not exist",
    "--run-dir": "impala.py: Missing value for argument '--run-dir'.",
    "--resume=": "allowed: auto, none, or the path",
    "--resume /etc/passwd": "no drl_mpi checkpoint",
    "--run-dir /etc/passwd": "cannot be used",
    "--run-dir /etc/passwd/x": "cannot be used",
    "--run-dir /proc/x": "cannot be used",
    f"--run-dir {'x' * 300}": "File name too long",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(options, impala, tmp_path):
    run = impala(options)
    assert run.rc == 2, run
    assert run.stderr.startswith("impala.py: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert REFUSED[options] in run.stderr
    assert run.stdout == ""
    assert not list(tmp_path.iterdir()), "a refusal leaves no trace"


def test_a_name_in_a_message_is_a_name_of_an_option(impala):
    said = impala("--lambda_ 2" if "--lambda_" in impala("--help").stdout else "--lambda 2").stderr
    option = said.split()[1]
    assert impala(f"{option} 0.5").rc == STARTED, f"{said!r} names {option}"


@pytest.fixture(scope="module")
def used(start, tiny, tmp_path_factory):
    """A finished run with two checkpoints."""
    cwd = tmp_path_factory.mktemp("used")
    run = start(f"{tiny} --lockstep --checkpoint-unrolls 5 --total-frames 200", cwd).wait()
    assert run.rc == 0, run.text
    return run.folder


@pytest.fixture
def copy(used, tmp_path):
    shutil.copytree(used, tmp_path / "run")
    return sorted((tmp_path / "run" / "checkpoints").glob("*.h5"))


SAME = "--lockstep --checkpoint-unrolls 5 --total-frames 200"


def refused(run, words):
    assert run.rc == 2, run
    assert run.stderr.startswith("impala.py: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert words in run.stderr


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--gamma 0.9", "gamma: 0.9 now, 0.99 stored"),
        ("--total-frames 400", "total_frames: 400 now, 200 stored"),
        ("--core lstm", 'core: "lstm" now, "none" stored'),
        ("--resume none", "--resume none"),
    ],
)
def test_a_folder_of_another_run_is_refused(options, words, impala):
    refused(impala(f"{SAME} {options}"), words)


def test_a_checkpoint_of_another_run_is_refused(copy, impala):
    options = f"{SAME} --run-dir other --resume {copy[-1]}"
    refused(impala(f"{options} --gamma 0.9"), "gamma: 0.9 now")
    refused(impala(f"{options} --env Acrobot-v1"), 'env: "Acrobot-v1" now')


def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy, impala, monkeypatch):
    assert len(copy) == 2
    copy[-1].write_bytes(copy[-1].read_bytes()[:3000])
    found = []
    monkeypatch.setattr(
        relaunch.StopSignals,
        "supervise",
        lambda _self, command, *_, **__: found.append(command) or STARTED,
    )
    assert impala(SAME).rc == STARTED
    copy[0].write_bytes(b"")
    refused(impala(SAME), "none of the 2 checkpoints")


def test_refusals_under_mpirun_too(start, tiny, tmp_path):
    run = start(f"{tiny} --learners 3", tmp_path, 3).wait()
    assert run.rc == 2, run.text
    assert run.stderr.startswith("impala.py: "), run.text
    assert run.stderr.count("impala.py: ") == 1, run.text
    assert "Traceback" not in run.stderr


def test_the_wrong_mpirun_is_refused(start, tiny, tmp_path):
    lies = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    run = start(tiny, tmp_path, env=lies).wait()
    refused(run, "the launcher started 4 ranks, but MPI sees 1")
    assert not run.folder.exists()
