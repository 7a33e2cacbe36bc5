"""What systems make of their settings, without starting anything."""

import dataclasses
from fractions import Fraction

import pytest

from drl_mpi.acting.service_meters import ServiceMeters
from drl_mpi.envs import EnvSpec
from drl_mpi.errors import UsageError
from drl_mpi.experience import UniformReplay
from drl_mpi.experience.replay import storage_bytes
from drl_mpi.run.layout import plan
from drl_mpi.systems import central, inspection
from drl_mpi.systems.a3c import A3C
from drl_mpi.systems.a3c import PAPER as A3C_PAPER
from drl_mpi.systems.dqn import DQN
from drl_mpi.systems.dqn import PAPER as DQN_PAPER
from drl_mpi.systems.ga3c import GA3C
from drl_mpi.systems.ga3c import PAPER as GA3C_PAPER
from drl_mpi.systems.gorilla import PAPER as GORILLA_PAPER
from drl_mpi.systems.gorilla import Gorilla
from drl_mpi.systems.impala import Impala
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


# Central acting.

CENTRAL = {"ga3c": GA3C(), "impala": Impala(acting="central")}
FREE = ("groups", "predictors", "trainers", "max_predictors", "max_trainers", "predict_batch")


def refusal(config, ranks=3):
    """The text with which a config is refused, or "" if it is not."""
    ranks = 1 if config.actors == 0 else ranks
    try:
        config.check()
        config.check_layout(layout_of(config, ranks))
    except UsageError as error:
        text = str(error)
        assert "\n" not in text
        return text
    return ""


@pytest.mark.parametrize("name", CENTRAL)
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"groups": 0}, "--groups is 0; allowed: 1 to 64"),
        ({"groups": 65, "envs_per_actor": 65}, "--groups is 65; allowed: 1 to 64"),
        ({"predictors": 0}, "--predictors is 0; allowed: 1 to 256"),
        ({"trainers": 257}, "--trainers is 257; allowed: 1 to 256"),
        ({"max_predictors": 0}, "--max-predictors is 0; allowed: 1 to 256"),
        ({"max_trainers": 300}, "--max-trainers is 300; allowed: 1 to 256"),
        ({"predict_batch": 0}, "--predict-batch is 0; allowed: 1 to 1000000"),
        ({"predict_wait": -0.1}, "--predict-wait is -0.1; allowed: 0.0 to 1000.0"),
        ({"predict_wait": float("nan")}, "--predict-wait is nan; allowed: 0.0 to 1000.0"),
        ({"groups": 3}, "cannot be cut into --groups 3 of equal size; change either"),
        ({"groups": 16, "predictors": 8, "trainers": 8, "tune": "off"}, ""),
        ({"lockstep": True}, ""),
        ({"lockstep": True, "tune": "off", "predict_batch": 1}, ""),
        ({"lockstep": True, "predictors": 2}, "--lockstep with --predictors 2, --trainers 1 and"),
        ({"lockstep": True, "trainers": 2}, "has one predictor and one trainer; use --predictors"),
        ({"lockstep": True, "tune": "on"}, "use --predictors 1 --trainers 1 --tune off"),
        ({"actors": 0}, "--actors 0: "),
    ],
)
def test_what_central_acting_refuses(name, changes, text):
    found = refusal(dataclasses.replace(CENTRAL[name], **changes))
    assert (text in found) if text else found == ""


def test_envs_that_cannot_be_cut_are_named():
    config = GA3C(envs_per_actor=10, groups=4)
    assert refusal(config) == (
        "--envs-per-actor 10 cannot be cut into --groups 4 of equal size; change either"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"learners": 1}, ""),
        ({"learners": 2}, "--learners 2: GA3C has one; for more use jobs/impala.py --acting centr"),
        ({"learners": 0}, "--learners 0: GA3C has one"),
        ({"batch_size": 0}, "--batch-size is 0; allowed: 1 to 1000000"),
        ({"baseline_cost": -1.0}, "--baseline-cost is -1.0; allowed: 0.0 to 1000000.0"),
        ({"entropy_cost": -1.0}, "--entropy-cost is -1.0; allowed: 0.0 to 1000000.0"),
        ({"min_probability": -1e-9}, "--min-probability is -1e-09; allowed: 0.0 to 0.1"),
        ({"min_probability": 0.2}, "--min-probability is 0.2; allowed: 0.0 to 0.1"),
        ({"min_probability": 0.0}, ""),
        ({"actors": 0}, "--actors 0: GA3C's learner does not act; give at least 1 actor"),
        ({"epsilon": -1.0}, "the optimiser's settings cannot work: "),
        (
            {"lockstep": True, "batch_size": 48},
            "--lockstep: the 32 environments of all actors do not make whole batches of 48 unroll",
        ),
        ({"lockstep": True, "batch_size": 32}, ""),
        ({"lockstep": True, "batch_size": 16}, ""),
        ({"batch_size": 48}, ""),
    ],
)
def test_what_ga3c_refuses(changes, text):
    found = refusal(GA3C(**changes))
    assert (text in found) if text else found == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tune": "auto"}, ""),
        ({"tune": "off"}, ""),
        ({"tune": "on"}, "--tune on with 2 learners: they wait for one another"),
        ({"trainers": 2}, "--trainers 2 with 2 learners: these update together"),
        ({"predictors": 2}, ""),
        ({"lockstep": True, "actors": 3}, "3 actors do not spread evenly over 2 learners"),
        ({"lockstep": True}, ""),
        (
            {"lockstep": True, "batch_size": 12},
            "--lockstep: the 16 environments of a learner's actors do not make whole batches of 3",
        ),
    ],
)
def test_what_several_central_learners_refuse(changes, text):
    config = dataclasses.replace(CENTRAL["impala"], learners=2, actors=2)
    config = dataclasses.replace(config, **changes)
    found = refusal(config, config.actors + 2)
    assert (text in found) if text else found == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"groups": 4}, "--groups 4 is for --acting central; add that, or leave this out"),
        ({"predictors": 3}, "--predictors 3 is for --acting central"),
        ({"max_trainers": 8}, "--max-trainers 8 is for --acting central"),
        ({"predict_wait": 1.0}, "--predict-wait 1.0 is for --acting central"),
        ({"tune": "off"}, "--tune off is for --acting central"),
        ({"lockstep": True, "trainers": 3}, "--trainers 3 is for --acting central"),
        ({"groups": 2, "tune": "auto"}, ""),
    ],
)
def test_options_of_central_acting_that_would_do_nothing_are_refused(changes, text):
    found = refusal(Impala(**changes))
    assert (text in found) if text else found == ""


def test_local_acting_need_not_be_cut_into_groups():
    config = Impala(envs_per_actor=1, batch_size=4)
    assert refusal(config) == ""
    assert config.record_width == 1


def test_who_does_what_with_central_acting():
    for config in CENTRAL.values():
        assert config.central
        assert roles(config, 4) == "laaa"
        assert not Impala().central
    assert roles(dataclasses.replace(CENTRAL["impala"], learners=2), 6) == "llaaaa"


@pytest.mark.parametrize(
    ("changes", "width", "updates"),
    [
        ({"envs_per_actor": 32, "groups": 2, "batch_size": 32}, 16, 2),
        ({"envs_per_actor": 32, "groups": 4, "batch_size": 64}, 8, 1),
        ({"envs_per_actor": 12, "groups": 2, "batch_size": 8}, 2, 3),
        ({"envs_per_actor": 2, "groups": 2, "batch_size": 64}, 1, 1),
    ],
)
def test_a_record_is_as_wide_as_groups_and_batches_can_be_cut(changes, width, updates):
    """And a round has as many updates as its unrolls make batches, but at least one."""
    for config in (GA3C(**changes), Impala(acting="central", replay_fraction=0, **changes)):
        layout = layout_of(config, 3)
        assert config.record_envs(layout) == width
        assert config.updates_per_round(layout) == updates
        assert config.group_envs == changes["envs_per_actor"] // changes["groups"]


@pytest.mark.parametrize(
    ("changes", "ranks", "expected"),
    [
        ({}, 3, True),
        ({"tune": "off"}, 3, False),
        ({"lockstep": True}, 3, False),
        ({"learners": 2}, 5, False),
        ({"tune": "on"}, 3, True),
    ],
)
def test_numbers_are_tuned_by_default_where_that_can_work(changes, ranks, expected):
    config = dataclasses.replace(CENTRAL["impala"], **changes)
    assert config.tuned(layout_of(config, ranks)) is expected


def test_the_tuner_may_try_what_was_given():
    most = GA3C(predictors=6, max_predictors=2, trainers=1, max_trainers=3).most(5)
    assert (most.predictors, most.trainers, most.actors) == (6, 3, 5)


@pytest.mark.parametrize("name", CENTRAL)
@pytest.mark.parametrize("option", [*FREE, "predict_wait", "tune"])
def test_a_resumed_run_may_serve_its_actors_otherwise(name, option):
    config = CENTRAL[name]
    value = {"predict_wait": 2.0, "tune": "off"}.get(option, 8)
    other = dataclasses.replace(config, **{option: value})
    assert config.identity() == other.identity()


@pytest.mark.parametrize("name", CENTRAL)
@pytest.mark.parametrize("option", ["groups", "predict_batch"])
def test_but_not_in_lockstep_where_other_batches_give_other_bits(name, option):
    config = dataclasses.replace(CENTRAL[name], lockstep=True)
    other = dataclasses.replace(config, **{option: 8})
    assert config.identity() != other.identity()


def test_acting_is_part_of_what_a_run_is():
    assert Impala().identity() != CENTRAL["impala"].identity()
    for changes in ({"batch_size": 8}, {"unroll_length": 3}, {"min_probability": 1e-3}):
        assert GA3C().identity() != GA3C(**changes).identity()


def test_the_ga3c_preset_is_the_papers():
    GA3C_PAPER.check()
    assert (GA3C_PAPER.gamma, GA3C_PAPER.reward_clip, GA3C_PAPER.precision) == (0.99, 1.0, "fp32")
    assert (GA3C_PAPER.predictors, GA3C_PAPER.trainers, GA3C_PAPER.predict_batch) == (2, 2, 128)
    assert (GA3C_PAPER.unroll_length, GA3C_PAPER.min_probability) == (5, 1e-6)
    assert (GA3C_PAPER.optimizer, GA3C_PAPER.learning_rate) == ("rmsprop", 3e-4)
    assert (GA3C_PAPER.decay, GA3C_PAPER.epsilon) == (0.99, 0.1)
    assert (GA3C_PAPER.baseline_cost, GA3C_PAPER.entropy_cost) == (1.0, 0.01)
    assert not GA3C_PAPER.annealed
    assert GA3C().annealed
    assert GA3C_PAPER.group_envs == 1, "an agent of the paper has one environment"
    assert refusal(GA3C_PAPER) == ""


def test_columns_name_all_that_the_service_counts():
    columns = (*GA3C.columns, *central.COLUMNS)
    assert set(ServiceMeters(lambda: 0.0).take()) <= set(columns)
    assert {"tps", "predictors", "trainers", "active_actors", "settled"} <= set(columns)
    assert len(set(columns)) == len(columns)
    assert GA3C.columns == Impala.columns == A3C.columns[:3]
