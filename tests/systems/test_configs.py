"""What DQN, Gorilla and A3C make of their settings, without starting anything."""

import dataclasses
from fractions import Fraction

import pytest

from drl_mpi.envs import EnvSpec
from drl_mpi.errors import UsageError
from drl_mpi.experience import UniformReplay
from drl_mpi.experience.replay import storage_bytes
from drl_mpi.run.layout import plan
from drl_mpi.systems import inspection
from drl_mpi.systems.a3c import A3C
from drl_mpi.systems.a3c import PAPER as A3C_PAPER
from drl_mpi.systems.dqn import DQN
from drl_mpi.systems.dqn import PAPER as DQN_PAPER
from drl_mpi.systems.gorilla import PAPER as GORILLA_PAPER
from drl_mpi.systems.gorilla import Gorilla
from drl_mpi.systems.network import make_net
from drl_mpi.systems.served import Served
from drl_mpi.updating.shard import BUCKETS, ShardCounts

ATARI = EnvSpec("ALE/Pong-v5", (84, 84), "uint8", 4, 6, 4)
POLE = EnvSpec("CartPole-v1", (4,), "float32", 1, 2, 1)


def layout_of(config, ranks):
    return plan(ranks, ["host"] * ranks, 0, **config.wanted(ranks))


def roles(config, ranks):
    return "".join(place.role[0] for place in layout_of(config, ranks).ranks)


@pytest.mark.parametrize(
    ("config", "ranks", "expected"),
    [
        (DQN(), 4, "laaa"),
        (DQN(actors=0), 1, "l"),
        (Gorilla(), 3, "las"),
        (Gorilla(learners=2, servers=2), 8, "llaaaass"),
        (Gorilla(bundled=True, servers=2), 6, "llllss"),
        (A3C(), 5, "lllls"),
        (A3C(learners=2, servers=2), 4, "llss"),
    ],
)
def test_who_does_what(config, ranks, expected):
    assert roles(config, ranks) == expected


def test_a_global_replay_is_fed_by_every_actor():
    config = Gorilla(learners=2, servers=1, actors=3, replay="global", envs_per_actor=4)
    layout = layout_of(config, 6)
    assert [config.actors_of(learner, layout) for learner in (0, 1)] == [(2, 3, 4)] * 2
    assert [config.learners_of(actor, layout) for actor in (2, 3, 4)] == [(0, 1)] * 3
    assert config.record_envs(layout) == 2
    local = dataclasses.replace(config, replay="local", actors=4)
    layout = layout_of(local, 7)
    assert sorted(local.actors_of(0, layout) + local.actors_of(1, layout)) == [2, 3, 4, 5]
    assert local.record_envs(layout) == 4


@pytest.mark.parametrize(
    ("config", "ranks", "updates", "warm_up"),
    [
        # lanes x unroll length steps, at batch size / ratio of them per update.
        (DQN(envs_per_actor=4, unroll_length=4, replay_start=160), 3, 32 * 8 // 32, 5),
        (DQN(actors=0, envs_per_actor=4, unroll_length=4, replay_start=160), 1, 4, 10),
        (
            Gorilla(
                learners=2, actors=2, replay="global", envs_per_actor=4, unroll_length=4,
                replay_start=160,
            ),
            5, 4, 10,
        ),
        (
            Gorilla(bundled=True, learners=2, envs_per_actor=4, unroll_length=4, replay_start=96),
            3, 4, 6,
        ),
        (A3C(learners=2), 3, 1, 0),
    ],
)  # fmt: skip
def test_a_round_in_lockstep(config, ranks, updates, warm_up):
    config = dataclasses.replace(config, lockstep=True)
    config.check()
    layout = layout_of(config, ranks)
    config.check_layout(layout)
    assert config.updates_per_round(layout) == updates
    assert config.warm_up_unrolls(layout) == warm_up


def test_the_ratio_is_the_one_that_was_written():
    assert DQN().steps_per_update == 4
    assert DQN(replay_ratio=0.1).steps_per_update == 320
    assert DQN(replay_ratio=1e-3, batch_size=1).steps_per_update == 1000
    assert DQN(replay_ratio=10).steps_per_update == Fraction(16, 5)
    # 64 steps, 20 updates: in floats, 64 - 20 x 3.2 is less than nothing.
    config = DQN(
        lockstep=True, replay_ratio=10, envs_per_actor=4, unroll_length=16, replay_start=64
    )
    config.check_layout(layout_of(config, 2))
    assert config.updates_per_round(layout_of(config, 2)) == 20


def test_memory_is_that_of_all_environments_that_come_to_a_learner():
    config = DQN(envs_per_actor=4, replay_capacity=1003, replay_priority=0.6)
    layout = layout_of(config, 3)
    assert config.memory_bytes(ATARI, layout, 0) == storage_bytes(ATARI, 8, 1003, True)
    assert A3C(learners=1).memory_bytes(ATARI, layout_of(A3C(learners=1), 2), 0) == 0
    assert (config.replay_size(), A3C().replay_size()) == (1003, 0)


def test_a_replay_that_cannot_hold_a_transition_is_refused_before_it_is_made():
    config = DQN(envs_per_actor=4, replay_capacity=63, replay_start=8)
    layout = layout_of(config, 3)
    config.check_env(POLE, layout)
    with pytest.raises(UsageError, match="raise it to 64 or more"):
        config.check_env(ATARI, layout)
    dataclasses.replace(config, replay_capacity=64).check_env(ATARI, layout)
    UniformReplay(ATARI, 8, 64, 3, None)


@pytest.mark.parametrize(
    ("start", "n_steps", "good"), [(32, 3, True), (32, 4, False), (64, 4, True), (96, 8, True)]
)
def test_lockstep_begins_to_learn_when_it_counts_on_it(start, n_steps, good):
    """After 8 environments' unrolls of 4 steps there is no transition of 4 steps yet."""
    config = DQN(
        lockstep=True, envs_per_actor=4, unroll_length=4, replay_start=start, n_steps=n_steps
    )
    layout = layout_of(config, 3)
    if good:
        config.check_layout(layout)
        return
    with pytest.raises(UsageError, match=f"no {n_steps}-step transition"):
        config.check_layout(layout)


def test_more_servers_than_parameters_are_refused(monkeypatch):
    class Tiny:
        def parameters(self):
            return [self]

        def numel(self):
            return 3

    monkeypatch.setattr(inspection, "make_net", lambda _config, _spec: Tiny())
    config = A3C(env="CartPole-v1", net="mlp", learners=1, servers=4)
    with pytest.raises(UsageError, match="--servers 4 for a network of 3 parameters; allowed: 1 t"):
        inspection.inspect(config, layout_of(config, 5))


@pytest.mark.parametrize("system", [DQN, Gorilla])
def test_the_network_is_the_one_asked_for(system):
    config = system(env="CartPole-v1", net="mlp")
    names = {name for name, _ in make_net(config, POLE).named_parameters()}
    assert "head.q.weight" in names
    names = {
        n for n, _ in make_net(dataclasses.replace(config, dueling=True), POLE).named_parameters()
    }
    assert {"head.value.weight", "head.advantage.weight"} <= names
    assert "head.q.weight" not in names
    names = {n for n, _ in make_net(A3C(core="lstm"), ATARI).named_parameters()}
    assert {"head.policy.weight", "head.value.weight", "core.lstm.weight_hh_l0"} <= names


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        ("adam", {"mean", "mean_square"}),
        ("rmsprop", {"mean_square"}),
        ("centred-rmsprop", {"mean_square", "mean_gradient"}),
        ("adagrad", {"sum_of_squares"}),
    ],
)
def test_optimizers(optimizer, slots):
    for system in (A3C, Gorilla):
        config = system(optimizer=optimizer)
        config.check()
        assert config.optimizer_slots() == slots
        assert set(config.make_shard_optimizer(5).slots()) == slots
    if optimizer in ("adam", "rmsprop"):
        assert DQN(optimizer=optimizer).optimizer_slots() == slots


def test_exploration_falls_with_frames_or_with_updates():
    config = DQN(exploration_start=1.0, exploration_end=0.1, exploration_horizon=1000)
    assert config.exploration(7, 0) == 1.0
    assert config.exploration(7, 500) == pytest.approx(0.55)
    assert config.exploration(7, 10**9) == pytest.approx(0.1)
    assert config.gauges(7, 500) == {"exploration": config.exploration(7, 500)}
    counted = dataclasses.replace(config, exploration_counts="updates")
    assert counted.exploration(500, 7) == pytest.approx(0.55)
    assert dataclasses.replace(config, exploration_per_actor=True).gauges(7, 500) == {}


def test_servers_may_change_but_not_in_lockstep():
    for config in (A3C(), Gorilla()):
        other = dataclasses.replace(config, servers=5)
        assert config.identity() == other.identity()
        locked, other = (dataclasses.replace(each, lockstep=True) for each in (config, other))
        assert locked.identity() != other.identity()
        for name, value in (("optimizer", "adagrad"), ("max_staleness", 3), ("unroll_length", 3)):
            assert config.identity() != dataclasses.replace(config, **{name: value}).identity()


def test_the_paper_presets_are_the_papers():
    for paper in (DQN_PAPER, GORILLA_PAPER, A3C_PAPER):
        paper.check()
        assert (paper.gamma, paper.reward_clip, paper.precision) == (0.99, 1.0, "fp32")
    for paper in (DQN_PAPER, GORILLA_PAPER):
        assert (paper.batch_size, paper.n_steps, paper.double, paper.net) == (
            32,
            1,
            False,
            "nature",
        )
        assert (paper.replay_capacity, paper.replay_start) == (1_000_000, 50_000)
    assert DQN_PAPER.target_period == 10_000
    assert (GORILLA_PAPER.servers, GORILLA_PAPER.optimizer) == (31, "adagrad")
    assert GORILLA_PAPER.wanted(None)["actors"] == 0
    assert (A3C_PAPER.unroll_length, A3C_PAPER.envs_per_actor) == (5, 1)
    assert A3C_PAPER.optimizer == "rmsprop"


def test_columns_name_all_that_servers_count():
    numbers = ShardCounts(1, 2, 3, 4, tuple(range(BUCKETS))).as_numbers()
    assert len(numbers) == 4 + BUCKETS
    for system in (A3C, Gorilla):
        assert issubclass(system, Served)
        edges = [column for column in system.columns if column[10:].isdecimal()]
        assert edges == [f"staleness_{n}" for n in (0, *(1 << i for i in range(BUCKETS - 1)))]
        assert "outlier_rate" in system.columns
        assert len(set(system.columns)) == len(system.columns)
