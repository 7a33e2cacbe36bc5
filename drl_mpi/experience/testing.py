"""An obvious replay, and environments that live through everything, for tests.

trial = Trial(UniformReplay, lanes=4, length=20, seed=1)
trial.play(9, 5, 5)                  # unrolls of 9, 5 and 5 transitions, to both
trial.reference.starts()[3, 17]      # what row 17 of lane 3 should give
trial.check()                        # and whether it does
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvSpec
from drl_mpi.experience.replay import PrioritizedReplay, UniformReplay
from drl_mpi.experience.rng import make_rng
from drl_mpi.experience.transitions import TransitionBatch
from drl_mpi.experience.unroll import UnrollShape

GAMMA = 0.75
MANY = 2048
"""Samples that reach each of 100 starts, but for once in 10 million times."""

AnyReplay = UniformReplay | PrioritizedReplay

Frame = tuple[float, float]


@dataclass
class Row:
    """One step of one environment; reward and discount are those of the step from here."""

    frame: Frame
    reset: bool
    action: int
    reward: float = 0.0
    discount: float = GAMMA
    number: int = -1


@dataclass
class Game:
    """Rows that follow each other."""

    whole: bool
    """Before its first row come zeros; else it is not known what does."""
    rows: list[Row] = field(default_factory=list)


@dataclass
class Transition:
    """What a replay should sample."""

    stack: list[Frame]
    action: int
    reward: float
    discount: float
    next_stack: list[Frame]


class Reference:
    """Every lane is a list of games, a game a list of rows. Nothing is ever overwritten.

    Args:
        stack, lanes, length, n_steps: of the replay; ``length`` is that of a lane's ring.
    """

    def __init__(self, stack: int, lanes: int, length: int, n_steps: int) -> None:
        self._stack_size, self._length, self._n_steps = stack, length, n_steps
        self._games: list[list[Game]] = [[] for _ in range(lanes)]
        self._broken = [True] * lanes

    @property
    def rows(self) -> list[int]:
        """Rows ever added, lane by lane."""
        return [sum(len(game.rows) for game in games) for games in self._games]

    def add(self, lane: int, rows: list[Row]) -> None:
        """Rows of an unroll."""
        games = self._games[lane]
        for row in rows:
            if row.reset or self._broken[lane]:
                games.append(Game(whole=row.reset))
            row.number = self.rows[lane]
            games[-1].rows.append(row)
            self._broken[lane] = False

    def starts(self) -> dict[tuple[int, int], Transition]:
        """(lane, number of a row in it) -> the transition from there, if there is one."""
        found = {}
        for lane, games in enumerate(self._games):
            oldest = self.rows[lane] - self._length
            for game in games:
                for at, row in enumerate(game.rows):
                    transition = self._transition(game, at, game is games[-1], oldest)
                    if row.number >= oldest and transition is not None:
                        found[lane, row.number] = transition
        return found

    def moved(self, lanes: int, length: int) -> Reference:
        """The same in other lanes: see ``rings_state.move``."""
        pasts = [[row for game in games for row in game.rows] for games in self._games]
        level = self._length
        while sum(min(len(past), level) for past in pasts) > lanes * length:
            level -= 1
        line = [
            (origin, row) for origin, past in enumerate(pasts) for row in past[::-1][:level][::-1]
        ]
        other = Reference(self._stack_size, lanes, length, self._n_steps)
        share, more = divmod(len(line), lanes)
        for lane in range(lanes):
            before = None
            for _ in range(share + (lane < more)):
                origin, row = line.pop(0)
                other._broken[lane] = origin != before
                other.add(lane, [copy.copy(row)])
                before = origin
            other._broken[lane] = True
        return other

    def _transition(self, game: Game, at: int, is_last: bool, oldest: int) -> Transition | None:
        reward, discount, end = 0.0, 1.0, at
        while end - at < self._n_steps and discount:
            if end + 1 == len(game.rows):
                if is_last:
                    return None  # the next row is still to come
                break
            reward += discount * game.rows[end].reward
            discount *= game.rows[end].discount
            end += 1
        stack, next_stack = self._stack(game, at, oldest), self._stack(game, end, oldest)
        if end == at or stack is None or next_stack is None:
            return None
        return Transition(stack, game.rows[at].action, reward, discount, next_stack)

    def _stack(self, game: Game, at: int, oldest: int) -> list[Frame] | None:
        frames: list[Frame] = []
        for position in range(at - self._stack_size + 1, at + 1):
            if position >= 0 and game.rows[position].number >= oldest:
                frames.append(game.rows[position].frame)
            elif position < 0 and game.whole:
                frames.append((0.0, 0.0))
            else:
                return None
        return frames


class World:
    """Environments with terminations, time limits, lost lives and restarts, and their actor.

    Frames are (lane + 1, serial number), all different. Some environments are in the midst of a
    game when the first unroll begins, and each is restarted before one unroll in seven.

    Args:
        seed: decides everything.
        spec: with frames of shape (2,).
        lanes: environments.
        ends: probability that a step ends something; each kind of end is as likely.
        serial: the first frame's.
    """

    def __init__(self, seed: int, spec: EnvSpec, lanes: int, ends: float, serial: int = 1) -> None:
        self.random = random.Random(seed)
        self._spec, self._ends = spec, ends
        self._serial = [serial] * lanes
        self._over = [False] * lanes
        # [lane]: the rows before the next unroll that its first stack needs, and the current row.
        self._past: list[list[Row]] = [[] for _ in range(lanes)]
        self._now = [self._restart(lane) for lane in range(lanes)]
        for lane in range(lanes):
            for _ in range(self.random.choice([0, 0, 1, 3, 5])):
                self._step(lane)

    def unroll(
        self, lane: int, width: int, length: int
    ) -> tuple[dict[str, npt.NDArray[Any]], list[list[Row]]]:
        """Fields of an unroll of lanes ``lane`` .. ``lane + width - 1``, and its rows [lane]."""
        before = self._spec.stack - 1
        fields = Slot(UnrollShape(self._spec, length, width).record()).fields
        told = []
        for column in range(width):
            at = lane + column
            if self.random.random() < 1 / 7:
                self._now[at] = self._restart(at)
            rows = self._past[at][len(self._past[at]) - before :]
            rows += [self._step(at) for _ in range(length)] + [self._now[at]]
            for i, row in enumerate(rows):
                fields["frames"][i, column], fields["resets"][i, column] = row.frame, row.reset
            for t, row in enumerate(rows[before:-1]):
                fields["actions"][t, column] = row.action
                fields["rewards"][t, column] = row.reward
                fields["discounts"][t, column] = row.discount
            self._past[at] = rows[:-1]
            told.append([copy.copy(row) for row in rows[before:-1]])
        return fields, told

    def _step(self, lane: int) -> Row:
        """Finishes the current row and goes to the next."""
        row, over = self._now[lane], self._over[lane]
        self._past[lane].append(row)
        self._now[lane] = self._row(lane, reset=over)
        self._over[lane] = False
        if not over:
            row.reward = self.random.randint(-8, 8) / 4
            if self.random.random() < self._ends:
                end = self.random.choice(["life lost", "game over", "time limit"])
                row.discount = GAMMA if end == "time limit" else 0.0
                self._over[lane] = end != "life lost"
        return row

    def _restart(self, lane: int) -> Row:
        before = self._spec.stack - 1
        self._over[lane] = False
        self._past[lane] = [Row((0.0, 0.0), reset=True, action=0) for _ in range(before)]
        return self._row(lane, reset=True)

    def _row(self, lane: int, reset: bool) -> Row:
        self._serial[lane] += 1
        frame = (lane + 1.0, self._serial[lane] - 1.0)
        return Row(frame, reset, self.random.randrange(self._spec.num_actions))


class Trial:
    """A replay, its reference and a world, which go through the same.

    Args:
        kind: of replay, ``alpha`` and ``eps`` included.
        stack, lanes, length, n_steps: ``length`` is that of a lane's ring.
        width: environments per unroll, a divisor of ``lanes``; all if 0.
        spare: rows of capacity that do not divide among the lanes.
        ends, seed: the world's.
    """

    def __init__(
        self,
        kind: Callable[[EnvSpec, int, int, int, np.random.Generator], AnyReplay],
        *,
        stack: int = 3,
        lanes: int = 2,
        length: int = 30,
        n_steps: int = 2,
        width: int = 0,
        spare: int = 0,
        ends: float = 0.2,
        seed: int = 5,
        serial: int = 1,
    ) -> None:
        self.spec = EnvSpec("Numbers", (2,), "float32", stack, num_actions=5, action_repeat=1)
        self.lanes, self.length, self.width = lanes, length, width or lanes
        self.world = World(seed, self.spec, lanes, ends, serial)
        self.reference = Reference(stack, lanes, length, n_steps)
        self.replay = kind(self.spec, lanes, lanes * length + spare, n_steps, make_rng(1))
        self.batch = TransitionBatch(self.spec, MANY)

    def play(self, *lengths: int) -> None:
        """An unroll each of some of the environments."""
        for length in lengths:
            lane = self.world.random.randrange(0, self.lanes, self.width)
            fields, told = self.world.unroll(lane, self.width, length)
            self.replay.add(lane, fields)
            for values in fields.values():  # the slot goes back to MPI: nothing of it may be kept
                values.fill(0)
            for column, rows in enumerate(told):
                self.reference.add(lane + column, rows)

    def sample(self, batch: TransitionBatch | None = None) -> TransitionBatch:
        """A batch, filled."""
        batch = batch or self.batch
        if isinstance(self.replay, PrioritizedReplay):
            self.replay.sample(batch, 0.5)
        else:
            self.replay.sample(batch)
        return batch

    def keys(self, batch: TransitionBatch) -> list[tuple[int, int]]:
        """(lane, number) of a batch's rows."""
        return list(zip((batch.indices % self.lanes).tolist(), batch.generations.tolist()))

    def slot(self, lane: int, number: int) -> int:
        """Where the replay keeps a row."""
        return number % self.length * self.lanes + lane

    def check(self) -> None:
        """As many starts, each of them drawn, none other, and all that is said of them right."""
        starts, batch = self.reference.starts(), self.batch
        assert self.replay.sampleable == len(starts)
        if not starts:
            assert not self.replay.ready(0)
            return
        keys = self.keys(self.sample())
        assert set(keys) == set(starts)
        wanted = [starts[key] for key in keys]
        np.testing.assert_array_equal(batch.stacks, [each.stack for each in wanted])
        np.testing.assert_array_equal(batch.next_stacks, [each.next_stack for each in wanted])
        assert batch.actions.tolist() == [each.action for each in wanted]
        # All these sums and products are exact in float32.
        assert batch.rewards.tolist() == [each.reward for each in wanted]
        assert batch.discounts.tolist() == [each.discount for each in wanted]
        newest = [rows - 1 for rows in self.reference.rows]
        assert batch.ages.tolist() == [newest[lane] - number for lane, number in keys]
