"""Lanes: the unrolls of actors without a network are those that actors with one would have sent."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from drl_mpi import envs, nets
from drl_mpi.acting.choosing import choose_by_softmax
from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.local import LocalActing
from drl_mpi.acting.predictors import Predictor
from drl_mpi.acting.versions import Versions
from drl_mpi.comm.parameters import Published
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot
from drl_mpi.envs.testing import register
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.experience.rng import make_rng, pack_rng
from drl_mpi.losses import action_log_probs
from drl_mpi.roles.unroller import Unroller

LENGTHS = (5, -3, 1, -1, 9)
GAMMA, CLIP = 0.9, 1.0


def vector_of(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()


def scaled(net, factor):
    """Other parameters."""
    return (vector_of(net) * factor).astype(np.float32)


class Mail:
    """One version of the parameters."""

    stopped = due = False

    def __init__(self, vector):
        self.news = [Published(4, vector, 400)]

    def begin(self):
        pass

    def newest(self):
        return self.news.pop() if self.news else None


class World:
    """An environment, a network for it, and what plays it."""

    def __init__(self, num_envs=4, *, width=None, length=5, stack=1, pixels=None, core=None):
        self.id = register("drl_mpi/Lanes-v0", lengths=LENGTHS, pixels=pixels)
        self.options = envs.EnvOptions(stack=stack)
        self.num_envs = num_envs
        self.env = self.make_env()
        self.net = nets.make(
            "shallow" if pixels else "mlp", self.env.spec.observation_shape, 3, core=core, seed=1
        )
        with torch.no_grad():  # away from the uniform policy
            self.net.head.policy.weight.mul_(300)
        self.shape = UnrollShape(self.env.spec, length, width or num_envs, (2, 256) if core else ())

    def make_env(self):
        return envs.make(self.id, self.num_envs, self.options)

    def lane(self, source=1, channel=0, depth=1):
        lane = Lane(
            source, channel, self.shape, self.num_envs, depth, gamma=GAMMA, reward_clip=CLIP
        )
        lane.restart()
        return lane

    def predictor(self, versions, seed=7, choose=choose_by_softmax):
        return Predictor(self.net, versions, choose, make_rng(seed))


def copies(slots):
    return [{name: slot[name].copy() for name in slot.fields} for slot in slots]


def play(lane, env, predict, steps, seed=30, before=lambda _step: None):
    """Unrolls that a lane makes, as copies; every unroll's slots go back at once, as garbage."""
    unrolls = []
    assert lane.arrive(env.reset(seed)) is None
    for step in range(steps):
        before(step)
        served = predict([lane])
        lane.note(0.5, 0.25)
        if (slots := lane.arrive(env.step(served.actions[0].copy()))) is not None:
            unrolls.append(copies(slots))
            for slot in slots:
                slot.buffer.fill(0xAB)
            lane.release(slots)
    return unrolls


VARIANTS = {
    "vectors": {},
    "two records": {"width": 2},
    "stacks": {"stack": 3},
    "long stacks": {"stack": 4, "length": 2},
    "lstm": {"core": "lstm", "stack": 2, "width": 2},
    "pixels": {"pixels": (20, 20), "stack": 3, "num_envs": 2},
    "pixels, lstm": {"pixels": (20, 20), "stack": 2, "core": "lstm", "num_envs": 2, "length": 3},
    "one step": {"length": 1, "stack": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_unrolls_are_those_of_local_acting_bit_for_bit(variant):
    world, unrolls = World(**VARIANTS[variant]), 6
    vector = scaled(world.net, 1.5)
    rng = make_rng(7)
    acting = LocalActing(world.net, Mail(vector), Poller(60.0), choose_by_softmax, rng)
    unroller = Unroller(
        world.make_env(), acting, world.shape, gamma=GAMMA, reward_clip=CLIP, restart=lambda _: 30
    )
    expected = []
    for _ in range(unrolls):
        unroller.begin()
        unroller.refresh()
        slots = [Slot(world.shape.record()) for _ in range(unroller.records)]
        unroller.fill(slots)
        for slot in slots:  # by the actor
            slot["rng"][:] = pack_rng(rng)
            slot["waited_s"][...] = 0.5 * world.shape.length / len(slots)
            slot["worked_s"][...] = 0.25 * world.shape.length / len(slots)
        expected.append(copies(slots))

    versions = Versions()
    versions.publish(vector, 4, 400)
    lane = world.lane()
    assert lane.records == unroller.records
    found = play(lane, world.env, world.predictor(versions), unrolls * world.shape.length)
    assert len(found) == unrolls
    for ours, theirs in zip(found, expected):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert set(a) == set(b)
            for name in b:
                assert a[name].tobytes() == b[name].tobytes(), name
    firsts = np.concatenate([fields["firsts"][:-1] for unroll in expected for fields in unroll])
    assert 0.1 < firsts.mean() < 0.9, "games begin in the middle of unrolls"
    assert any(fields["version"] == 4 for fields in expected[0])
    if world.shape.state_shape:
        assert np.abs(expected[-1][0]["state"]).max() > 0.01


def batch_of(world, unroll):
    """An unroll as a learner sees it."""
    shape = UnrollShape(
        world.shape.spec, world.shape.length, world.num_envs, world.shape.state_shape
    )
    batch = Batch(shape)
    batch.begin()
    for part, fields in enumerate(unroll):
        batch.write(part * world.shape.envs, fields)
        batch.note(fields)
    return batch


def log_probs_step_by_step(world, batch, vectors):
    """[T, n] of the stored actions, row t by the network with ``vectors[t]``."""
    net, state = world.net, batch.state
    kept = vector_of(net).copy()
    rows = []
    for t, vector in enumerate(vectors):
        nets.load_flat(net, vector)
        with torch.no_grad():
            output, state = net(batch.observations[t : t + 1], batch.firsts[t : t + 1], state)
        rows.append(action_log_probs(output.logits, batch.actions[t : t + 1]))
    nets.load_flat(net, kept)
    return torch.cat(rows)


@pytest.mark.parametrize("core", [None, "lstm"])
def test_mu_is_of_the_version_that_chose_each_action(core):
    """Versions change inside an unroll, also back: what counts is which one chose."""
    world = World(core=core, stack=2, width=2)
    vectors = {number: scaled(world.net, 1 + number / 20) for number in range(30)}
    versions, lane = Versions(), world.lane()
    chose = [0, 0, 3, 4, 9, 9, 9, 9, 10, 10, 11, 14, 14, 14, 29]
    lags = []

    def before(step):
        if step and step % world.shape.length == 0:
            lags.append(lane.lag_inside)
        number = chose[step]
        if versions.newest is None or versions.newest.number != number:
            versions.publish(vectors[number], number, 100 * number)

    found = play(lane, world.env, world.predictor(versions), len(chose), before=before)
    lags.append(lane.lag_inside)
    assert lags == [9, 1, 18]
    for index, unroll in enumerate(found):
        acted = chose[5 * index : 5 * index + 5]
        batch = batch_of(world, unroll)
        assert batch.versions.tolist() == [acted[0]] * 4, "the oldest, for the lag"
        expected = log_probs_step_by_step(world, batch, [vectors[number] for number in acted])
        torch.testing.assert_close(batch.log_probs, expected, atol=1e-4, rtol=1e-4)
        single = log_probs_step_by_step(world, batch, [vectors[acted[0]]] * 5)
        assert (single - expected).abs().max() > 1e-2, "one version would not explain them"


def test_states_restart_where_episodes_do():
    """In the middle of an unroll: the state after such a row is that of a zero state before it."""
    world = World(core="lstm")
    versions, lane = Versions(), world.lane()
    versions.publish(scaled(world.net, 2.0), 0, 0)
    seen = []

    def before(_step):
        seen.append((lane.rows.frame.copy(), lane.rows.first.copy(), lane.state.copy()))

    play(lane, world.env, world.predictor(versions), 20, before=before)
    nets.load_flat(world.net, versions.newest.vector)
    began = kept = 0
    for (frame, first, state), (_, _, after) in pairwise(seen):
        assert np.abs(state).max() > 0 or first.all()
        for env in range(4):
            own = np.zeros_like(state[:, env]) if first[env] else state[:, env]
            with torch.no_grad():
                _, expected = world.net(
                    torch.from_numpy(frame[None, env : env + 1]),
                    torch.zeros(1, 1, dtype=torch.bool),
                    torch.from_numpy(own[:, None].copy()),
                )
            np.testing.assert_allclose(after[:, env], expected[:, 0], rtol=1e-4, atol=1e-5)
            began += first[env] and np.abs(state[:, env]).max() > 0
            kept += not first[env]
    assert began > 5
    assert kept > 20


@pytest.mark.parametrize("core", [None, "lstm"])
def test_lanes_do_not_mix(core):
    """Served together, alone and in either order, by one predictor or another."""
    worlds = [World(n, stack=3, core=core) for n in (2, 3, 1)]
    versions = Versions()
    versions.publish(scaled(worlds[0].net, 1.5), 0, 0)
    predictors = [worlds[0].predictor(versions, seed) for seed in range(2)]
    lanes = [world.lane(source=i) for i, world in enumerate(worlds)]
    seeds = (100, 200, 300)
    found = [[] for _ in lanes]
    for lane, world, seed in zip(lanes, worlds, seeds):
        lane.arrive(world.env.reset(seed))
    order = np.random.default_rng(1)
    for turn in range(60):
        chosen = order.permutation(3)[: order.integers(1, 4)]
        served = predictors[turn % 2]([lanes[i] for i in chosen])
        assert [lane.source for lane in served.lanes] == list(chosen)
        assert served.size == sum(worlds[i].num_envs for i in chosen)
        for i, actions in zip(chosen, served.actions):
            rows = worlds[i].env.step(actions.copy())
            if (slots := lanes[i].arrive(rows)) is not None:
                found[i].append(copies(slots))
                lanes[i].release(slots)
    for world, unrolls, seed in zip(worlds, found, seeds):
        assert len(unrolls) >= 5
        for unroll in unrolls:
            batch = batch_of(world, unroll)
            observations = batch.observations.numpy()
            newest = observations[..., -4:]
            assert newest[..., 0].tolist() == [[seed + b for b in range(world.num_envs)]] * 6
            played = newest[1:][batch.valid.numpy()]
            assert played[:, 3].tolist() == batch.actions.numpy()[batch.valid.numpy()].tolist()
            older = observations[..., :4]
            there = older.any(-1)
            assert (older[..., 0] == newest[..., 0])[there].all()
            assert (older[..., 2] == newest[..., 2] - 2)[there].all()
            expected = log_probs_step_by_step(world, batch, [versions.newest.vector] * 5)
            torch.testing.assert_close(batch.log_probs, expected, atol=1e-4, rtol=1e-4)


def drawn(rng):
    """A lane's predictor that draws at random, without a network."""

    def predict(lanes):
        for lane in lanes:
            lane.observe()
            actions = rng.integers(3, size=lane.envs)
            lane.decide(actions, np.zeros(lane.envs, np.float32), None, 0, rng)
        return [actions]

    return predict


def test_room_is_for_depth_unrolls_and_the_one_that_is_made():
    world = World(length=2)
    lane, predict = world.lane(depth=2), drawn(make_rng(1))
    lane.arrive(world.env.reset(1))
    lent = []
    assert (lane.between, lane.unrolls) == (True, 0)
    for number in range(3):
        assert lane.has_room
        assert lane.between
        predict([lane])
        assert (lane.between, lane.unrolls) == (False, number + 1)
        assert lane.has_room, "an unroll that was begun can be gone on with"
        assert lane.arrive(world.env.step(np.zeros(4, int))) is None
        predict([lane])
        lent.append(lane.arrive(world.env.step(np.zeros(4, int))))
    assert not lane.has_room
    assert len({id(slot) for slots in lent for slot in slots}) == 3
    lane.release(lent[1])
    assert lane.has_room
    predict([lane])
    assert lane._filling is lent[1]


def test_a_restart_forgets_an_unfinished_unroll_and_keeps_its_room():
    world = World(length=3, stack=3, core="lstm")
    versions = Versions()
    versions.publish(scaled(world.net, 2.0), 0, 0)
    lane, fresh = world.lane(), world.lane()
    predict = world.predictor(versions)
    play(lane, world.env, predict, 3 * 2 + 1)  # ends within an unroll
    assert not lane.between
    for _ in range(5):  # each would cost one of two
        lane.restart()
        assert lane.between
        assert lane.has_room
        lane.arrive(world.env.reset(30))
        predict([lane])
    lane.restart()
    assert not lane.state.any()
    again = play(lane, world.make_env(), world.predictor(versions), 9, seed=50)
    first = play(fresh, world.make_env(), world.predictor(versions), 9, seed=50)
    for ours, theirs in zip(again, first):
        for name in ("frames", "resets", "firsts", "state", "log_probs", "actions"):
            np.testing.assert_array_equal(ours[0][name], theirs[0][name], err_msg=name)


def test_times_are_summed_over_the_unroll_and_shared_by_its_records():
    world = World(width=1, length=3)
    lane, predict = world.lane(), drawn(make_rng(1))
    lane.note(1.0, 2.0)  # told to wait: nothing arrives
    lane.note(15.0, 30.0)
    lane.arrive(world.env.reset(1))
    sums = []
    for step in range(6):
        predict([lane])
        lane.note(1.0 + step, 2.0)
        if slots := lane.arrive(world.env.step(np.zeros(4, int))):
            sums.append([(float(s["waited_s"]), float(s["worked_s"])) for s in slots])
            lane.release(slots)
    assert sums == [[((16 + 6) / 4, (32 + 6) / 4)] * 4, [(15 / 4, 6 / 4)] * 4]


def test_the_rng_is_as_it_was_after_the_last_action():
    """Others may draw between, from the same generator."""
    world = World(width=2, length=3)
    rng, again = make_rng(5), make_rng(5)
    lane, predict = world.lane(), drawn(rng)

    def disturbed(lanes):
        rng.random()
        again.random()
        again.integers(3, size=4)
        actions = predict(lanes)
        expected.append(pack_rng(again).tolist())
        return type("Served", (), {"actions": actions})

    expected = []
    unrolls = play(lane, world.env, disturbed, 6)
    assert [fields["rng"].tolist() for fields in unrolls[0]] == [expected[2]] * 2
    assert [fields["rng"].tolist() for fields in unrolls[1]] == [expected[5]] * 2
