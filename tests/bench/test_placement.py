"""The map of an allocation that has not been asked for yet."""

import pytest

from drl_mpi.bench.placement import main


def test_the_map_is_the_jobs_own(capsys):
    words = ["--system", "gorilla", "--nodes", "2", "--ntasks-per-node", "3"]
    words += ["--", "--servers", "2", "--learners", "2"]
    assert main(words) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["0", "learner", "node1"],
        ["1", "actor", "node1"],
        ["2", "server", "node1"],
        ["3", "learner", "node2"],
        ["4", "actor", "node2"],
        ["5", "server", "node2"],
    ]


def test_gpus_are_learners(capsys):
    assert main(["--nodes", "2", "--ntasks-per-node", "4", "--gpus-per-node", "2"]) == 0
    learners = [line for line in capsys.readouterr().out.splitlines() if "learner" in line]
    assert [line.split()[-1] for line in learners] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nodes 0", "--nodes 0; allowed: 1 or more"),
        ("--ntasks-per-node 1", "every learner needs an actor"),
        ("--nodes 1 -- --servers 2", "--servers"),
        ("--system dreamer", "dreamer"),
        ("--output map.xyz", "'map.xyz' must end in .png, .pdf or .svg"),
        ("--output nowhere/map.png", "there is no folder 'nowhere'"),
    ],
)
def test_what_cannot_work_is_one_line(words, said, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "--nodes 3 --ntasks-per-node 4",
        "--system a3c --nodes 2 --ntasks-per-node 4 -- --servers 1",
        "--system gorilla --nodes 6 --ntasks-per-node 9",
        "--nodes 20 --ntasks-per-node 64 --gpus-per-node 4",
    ],
)
def test_it_can_be_drawn(words, tmp_path):
    pytest.importorskip("matplotlib")
    own, _, options = words.partition(" -- ")
    output = tmp_path / "map.png"
    assert main([*own.split(), "--output", str(output), "--", *options.split()]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
