"""Which rank does what: world size, hosts and GPUs -> roles, as a pure function.

Every rank calls `plan` with the same gathered facts and gets the same map, so no message is needed
to agree on it. What cannot work is refused here, before any work starts.

- Rank 0 is always a learner: it prints and writes the run folder.
- Learners stand where the GPUs are, one per GPU: NCCL refuses two ranks on one GPU.
- Servers are spread over the hosts, because each one's traffic is its host's traffic.
- Actors are what is left: they only need cores.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

from drl_mpi.errors import UsageError

LONGEST_TABLE = 64  # ranks; beyond a screen or so, `Layout.table` folds similar lines
ON_CPU = "learn on cores (--device cpu)"
Count = int | None
PerHost = Mapping[str, int] | int


def plan(
    world_size: int,
    hosts: Sequence[str],
    gpus_per_host: PerHost,
    *,
    learners: Count = None,
    servers: Count = None,
    actors: Count = None,
    cores_per_host: PerHost | None = None,
) -> Layout:
    """Give every rank one role; same input, same map.

    Args:
      world_size: number of ranks, at least 1.
      hosts: hosts[r] is the name of rank r's host, in any order (block, round-robin).
      gpus_per_host: by host name (no entry: none), or one number for every host.
      learners: None: what `actors` leaves if it is given; or else one per GPU as far as each gets
        an actor; or else (no GPUs) 1.
      servers: parameter servers. None: 0, never the spare ranks: most systems have no use for one.
      actors: None: what is left. 0: the learners act for themselves.
      cores_per_host: cores that a host's ranks may use together (the union of their CPU masks, so
        binding counts too), shared equally. Unknown: 1 thread per rank never oversubscribes.

    Raises:
      LayoutError: the wish is impossible; one line with the values, the reason and the remedy.
    """
    if world_size < 1 or len(hosts) != world_size:
        raise LayoutError(f"{world_size=}, {len(hosts)} hosts: pass one host per rank, at least 1")
    size = dict.fromkeys(hosts, 0)  # ranks per host, rank 0's host first
    for host in hosts:
        size[host] += 1
    gpus = _by_host("gpus_per_host", gpus_per_host, size, least=0)
    cores = _by_host("cores_per_host", cores_per_host, size, least=1)
    on_gpu = any(gpus.get(host, 0) for host in size)
    # How many learners each host can take: with GPUs anywhere, one for each GPU.
    room = {host: min(n, gpus.get(host, 0)) if on_gpu else n for host, n in size.items()}
    most = sum(room.values()) if on_gpu else None
    n_learners, n_servers = _counts(world_size, most, learners, servers, actors)
    if not room[hosts[0]]:
        raise LayoutError(
            f"rank 0 always learns, and its host {hosts[0]!r} has no GPU but others have: a mixed "
            f"team waits for its slowest; start rank 0 on a GPU, or {ON_CPU}"
        )
    # CPU learners spread out, since they compete for cores. GPU learners take the fewest hosts with
    # GPUs enough, rank 0's among them: NVLink ends at the host.
    homes = [hosts[0], *sorted([*size][1:], key=room.__getitem__, reverse=True)]
    if on_gpu:
        homes = homes[: 1 + sum(n < n_learners for n in accumulate(room[host] for host in homes))]
    learners_on = _deal(n_learners, room, homes)
    # Hosts with the fewest learners get the first servers: both are heavy on the wire.
    room = {host: size[host] - learners_on[host] for host in size}
    servers_on = _deal(n_servers, room, sorted(size, key=learners_on.__getitem__))

    placements = []
    seen = dict.fromkeys(Role, 0)
    local_ranks = dict.fromkeys(size, 0)
    for rank, host in enumerate(hosts):
        local_rank, role = local_ranks[host], Role.ACTOR
        if local_rank < learners_on[host]:
            role = Role.LEARNER
        elif local_rank >= size[host] - servers_on[host]:
            role = Role.SERVER
        threads = _threads(cores.get(host, size[host]), size[host], learners_on[host], role)
        gpu = local_rank if on_gpu and role is Role.LEARNER else None
        place = Placement(rank, role, seen[role], host, local_rank, cores.get(host), threads, gpu)
        placements.append(place)
        seen[role] += 1
        local_ranks[host] += 1
    return Layout(tuple(placements))


def local_layout(
    cores: int,
    gpus: int = 0,
    *,
    learners: Count = None,
    servers: Count = None,
    actors: Count = None,
) -> int:
    """Number of ranks that fit this one machine, for a job started without mpirun.

    One actor per core besides the learner on a few cores: on 2, 1 learner + 2 actors was the best
    measured (with 1 actor the learner waited 46 % of the time). On more, one core in five is left
    to learners: a step costs about a quarter as much to train on as to make.

    Learners: one per GPU but no more than cores; without GPUs 1, or one per core if they act for
    themselves (`actors` = 0). `plan` with the same wishes and this world size gives these counts;
    LayoutError as there, so that an
    impossible wish is refused before the relaunch.
    """
    if cores < 1:
        raise LayoutError(f"{cores=}: at least 1 is needed; pass what this process may use")
    if learners is None:
        learners = min(gpus or (cores if actors == 0 else 1), cores, actors or cores)
    if actors is None:
        actors = max(cores - _learning_cores(cores), learners)
    n = max(1, learners + (servers or 0) + actors)
    plan(n, ["localhost"] * n, gpus, learners=learners, servers=servers, actors=actors)
    return n


def _learning_cores(cores: int) -> int:
    """Cores that actors leave to learners; on few cores they share instead."""
    return cores // 5


def _threads(cores: int, ranks: int, learners: int, role: Role) -> int:
    """Torch threads of a rank: an equal share, and what does not divide goes to the learners."""
    if cores < ranks:
        return 1
    share, spare = divmod(cores, ranks)
    return share + spare // learners if role is Role.LEARNER else share


class LayoutError(UsageError, ValueError):
    """A wish that cannot work."""


class Role(StrEnum):
    """What a rank does for the whole run."""

    ACTOR = "actor"
    LEARNER = "learner"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Placement:
    """One rank's place in the run."""

    rank: int
    role: Role
    index: int  # within the role, in order of ranks: learner 0 is rank 0
    host: str
    local_rank: int  # among the ranks on this host
    cores: int | None  # that the ranks on this host share; None: unknown
    threads: int  # of torch: this rank's share of the cores, at least 1
    gpu: int | None  # a learner's device, counted on its host; None: CPU


@dataclass(frozen=True)
class Layout:
    """The map of a run: ranks[r] is rank r's placement."""

    ranks: tuple[Placement, ...]

    @cached_property
    def learners(self) -> tuple[int, ...]:
        return tuple(place.rank for place in self.ranks if place.role is Role.LEARNER)

    @cached_property
    def servers(self) -> tuple[int, ...]:
        return tuple(place.rank for place in self.ranks if place.role is Role.SERVER)

    @cached_property
    def actors(self) -> tuple[int, ...]:
        return tuple(place.rank for place in self.ranks if place.role is Role.ACTOR)

    def ranks_on(self, host: str) -> int:
        """Number of ranks on a host."""
        return sum(place.host == host for place in self.ranks)

    def role(self, rank: int) -> Role:
        return self.ranks[rank].role

    def learner_of(self, actor: int) -> int:
        """The learner that an actor feeds, on its own host where that keeps the learners even."""
        return self._feeds[actor]

    def actors_of(self, learner: int) -> tuple[int, ...]:
        """The actors that feed a learner, in order of ranks; none if the learners act."""
        return self._fed[learner]

    def publisher_to(self, actor: int) -> int:
        """The rank that sends an actor its learner's parameters.

        The learner itself on its own host. Of the actors on another one, the learner sends to the
        first, which relays to the others: else a vector would cross the network once per actor.
        """
        learner, host = self._feeds[actor], self.ranks[actor].host
        if host == self.ranks[learner].host:
            return learner
        first = next(rank for rank in self._fed[learner] if self.ranks[rank].host == host)
        return learner if actor == first else first

    def published_by(self, rank: int) -> tuple[int, ...]:
        """The actors that a rank sends parameters to, in order of ranks."""
        learner = self._feeds.get(rank, rank)
        return tuple(a for a in self._fed.get(learner, ()) if self.publisher_to(a) == rank)

    def table(self) -> str:
        """The map that rank 0 prints, with similar lines folded above `LONGEST_TABLE` ranks."""
        folded = len(self.ranks) > LONGEST_TABLE
        alike: dict[object, list[Placement]] = {}
        for place in self.ranks:
            key = (place.role, place.cores, place.threads, place.gpu is None)
            alike.setdefault(key if folded else place.rank, []).append(place)
        rows = [("rank", "role", "host", "cores", "threads", "GPU"), *map(_row, alike.values())]
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def as_dict(self) -> dict[str, Any]:
        fields = Placement.__dataclass_fields__
        return {"ranks": [{name: getattr(p, name) for name in fields} for p in self.ranks]}

    def to_json(self) -> str:
        return json.dumps(self.as_dict())

    @cached_property
    def _feeds(self) -> dict[int, int]:
        return {actor: learner for learner, fed in self._fed.items() for actor in fed}

    @cached_property
    def _fed(self) -> dict[int, tuple[int, ...]]:
        quota, extra = divmod(len(self.actors), len(self.learners))
        waiting: dict[str, deque[int]] = {place.host: deque() for place in self.ranks}
        for actor in self.actors:
            waiting[self.ranks[actor].host].append(actor)
        fed: dict[int, list[int]] = {learner: [] for learner in self.learners}
        for turn in range(quota + 1):  # on the host: learners in turn, the extras last
            for learner in self.learners:
                near = waiting[self.ranks[learner].host]
                if near and (turn < quota or extra):
                    fed[learner].append(near.popleft())
                    extra -= turn == quota
        far = iter(sorted(actor for near in waiting.values() for actor in near))
        for mine in fed.values():
            mine += islice(far, quota - min(quota, len(mine)))
        for actor, mine in zip(far, [mine for mine in fed.values() if len(mine) == quota]):
            mine.append(actor)
        return {learner: tuple(sorted(mine)) for learner, mine in fed.items()}


def _counts(
    world_size: int, most: Count, learners: Count, servers: Count, actors: Count
) -> tuple[int, int]:
    """Learners and servers; actors are the rest. `most` learners have a GPU; None: no GPUs."""
    for name, wish in {"learners": learners, "servers": servers, "actors": actors}.items():
        least = int(name == "learners")
        if wish is not None and wish < least:
            raise LayoutError(f"{name} = {wish}: at least {least} is allowed; raise it or omit it")
    alone = actors == 0
    servers = servers or 0
    rest = max(0, world_size - servers)
    if learners is None:
        learners = max(1, min(most or 1, rest // 2) if actors is None else rest - actors)
    if actors is None:
        actors = max(0, rest - learners)
    total = learners + servers + actors
    found = f"{world_size} ranks with {learners=}, {servers=}, {actors=}: "
    if actors < learners and not alone:
        fewer = f"ask for 1 to {rest // 2} learners, " if rest > 1 else ""
        raise LayoutError(
            f"{found}every learner needs an actor or waits for ever; {fewer}start at least "
            f"{servers + 2 * learners} ranks (mpirun -n), or let the learners act (actors=0)"
        )
    if total != world_size:
        raise LayoutError(
            f"{found}these add up to {total}; start {total} ranks (mpirun -n {total}), change "
            "them, or leave out learners or actors to have the rest filled in"
        )
    if most is not None and learners > most:
        fewer = "" if alone else f"ask for 1 to {most} learners, or "
        raise LayoutError(
            f"{found}only {most} can have a GPU of their own, and NCCL refuses two learners on "
            f"one; {fewer}{ON_CPU}"
        )
    return learners, servers


def _deal(count: int, room: Mapping[str, int], order: Iterable[str]) -> dict[str, int]:
    """Deal `count` ranks to the hosts, one each per round, passing over those that are full."""
    dealt = dict.fromkeys(room, 0)
    while count:
        order = [host for host in order if dealt[host] < room[host]][:count]
        for host in order:
            dealt[host] += 1
        count -= len(order)
    return dealt


def _by_host(name: str, given: PerHost | None, hosts: Iterable[str], least: int) -> dict[str, int]:
    table = dict.fromkeys(hosts, given) if isinstance(given, int) else dict(given or {})
    for host, n in table.items():
        if n < least:
            raise LayoutError(f"{name} = {n} for {host!r}: it must be at least {least}; correct it")
    return table


def _row(alike: Sequence[Placement]) -> tuple[str, str, str, str, str, str]:
    one = alike[0]
    ranks = _runs(place.rank for place in alike)
    role = f"{one.role} x {len(alike)}" if len(alike) > 1 else one.role
    hosts = _few(sorted({place.host for place in alike}))
    gpus = _runs(sorted({place.gpu for place in alike if place.gpu is not None}))
    return ranks, role, hosts, str(one.cores or "-"), str(one.threads), gpus or "-"


def _runs(numbers: Iterable[int]) -> str:  # 0-2,5
    runs: list[list[int]] = []
    for n in numbers:
        if not runs or n > runs[-1][-1] + 1:
            runs.append([])
        runs[-1][1:] = [n]
    return _few(["-".join(map(str, run)) for run in runs])


def _few(texts: Sequence[str]) -> str:
    return ",".join(texts if len(texts) < 5 else [*texts[:3], f".. {texts[-1]} ({len(texts)})"])
