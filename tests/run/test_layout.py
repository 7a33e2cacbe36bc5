"""rank -> role: the rules hold for every size from 1 to 4,096 ranks, or the wish is refused."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout, LayoutError, Role, local_layout, plan

MOST = 4096


@dataclass(frozen=True)
class Job:
    """A possible job: what `plan` is given."""

    hosts: list[str]
    gpus: dict[str, int]
    cores: dict[str, int]
    learners: int
    servers: int
    actors: int

    def plan(self) -> Layout:
        return plan(
            len(self.hosts),
            self.hosts,
            self.gpus,
            learners=self.learners,
            servers=self.servers,
            actors=self.actors,
            cores_per_host=self.cores,
        )


@st.composite
def jobs(draw: st.DrawFn, alone: bool = False) -> Job:
    """Block, round-robin or mixed placement; with and without GPUs; `alone`: no actors."""
    n = draw(st.integers(1 if alone else 2, MOST))
    n_hosts = draw(st.one_of(st.integers(1, min(n, 9)), st.integers(1, n)))
    names = [f"node{i}" for i in range(n_hosts)]
    match draw(st.sampled_from(["block", "robin", "mixed"])):
        case "block":
            hosts = [names[r * n_hosts // n] for r in range(n)]
        case "robin":
            hosts = [names[r % n_hosts] for r in range(n)]
        case _:
            hosts = list(names) + [names[r * r % n_hosts] for r in range(n - n_hosts)]
            random.Random(draw(st.integers(0, 2**32))).shuffle(hosts)
    some = draw(st.lists(st.integers(0, 8), min_size=1, max_size=5))
    gpus = {host: some[i % len(some)] for i, host in enumerate(names)}
    if any(gpus.values()):
        gpus[hosts[0]] = max(1, gpus[hosts[0]])
    cores = {host: draw(st.integers(1, 128)) for host in names[:5]}
    size = Counter(hosts)
    most = sum(min(size[h], gpus[h]) for h in names) if any(gpus.values()) else n
    learners = draw(st.integers(1, min(most, n if alone else n // 2)))
    servers = n - learners if alone else draw(st.integers(0, n - 2 * learners))
    return Job(hosts, gpus, cores, learners, servers, n - learners - servers)


many = settings(max_examples=60, deadline=None)


def loads(layout: Layout) -> list[int]:
    return [len(layout.actors_of(learner)) for learner in layout.learners]


@many
@given(jobs() | jobs(alone=True))
def test_every_rank_has_exactly_one_role_and_counts_are_kept(job: Job) -> None:
    layout = job.plan()
    together = [*layout.learners, *layout.servers, *layout.actors]
    assert sorted(together) == list(range(len(job.hosts)))
    counts = len(layout.learners), len(layout.servers), len(layout.actors)
    assert counts == (job.learners, job.servers, job.actors)
    assert layout.learners[0] == 0
    for ranks in (layout.learners, layout.servers, layout.actors):
        assert [layout.ranks[r].index for r in ranks] == list(range(len(ranks)))
    assert all(layout.role(r) is Role.ACTOR for r in layout.actors)


@many
@given(jobs())
def test_same_input_same_map(job: Job) -> None:
    one, other = job.plan(), job.plan()
    assert one == other
    assert [one.learner_of(a) for a in one.actors] == [other.learner_of(a) for a in other.actors]


@many
@given(jobs())
def test_hosts_and_local_ranks_are_what_was_given(job: Job) -> None:
    seen: Counter[str] = Counter()
    for rank, place in enumerate(job.plan().ranks):
        assert (place.rank, place.host) == (rank, job.hosts[rank])
        assert place.local_rank == seen[place.host]
        seen[place.host] += 1


@many
@given(jobs())
def test_actors_are_spread_evenly_over_learners(job: Job) -> None:
    layout = job.plan()
    assert max(loads(layout)) - min(loads(layout)) <= 1
    assert min(loads(layout)) >= 1
    fed = [(a, learner) for learner in layout.learners for a in layout.actors_of(learner)]
    assert sorted(fed) == [(a, layout.learner_of(a)) for a in layout.actors]


@many
@given(jobs())
def test_as_many_actors_as_possible_feed_a_learner_on_their_host(job: Job) -> None:
    layout = job.plan()
    quota, extra = divmod(job.actors, job.learners)
    actors = Counter(job.hosts[a] for a in layout.actors)
    learners = Counter(job.hosts[r] for r in layout.learners)
    at_quota = sum(min(actors[h], quota * learners[h]) for h in learners)
    above = sum(max(0, min(learners[h], actors[h] - quota * learners[h])) for h in learners)
    near = sum(job.hosts[a] == job.hosts[layout.learner_of(a)] for a in layout.actors)
    assert near == at_quota + min(extra, above)


@many
@given(jobs() | jobs(alone=True))
def test_every_learner_has_a_gpu_of_its_own_or_none_has(job: Job) -> None:
    layout = job.plan()
    devices = [(job.hosts[r], layout.ranks[r].gpu) for r in layout.learners]
    if any(job.gpus.values()):
        assert len(set(devices)) == len(devices)
        assert all(gpu is not None and 0 <= gpu < job.gpus[host] for host, gpu in devices)
    else:
        assert all(gpu is None for _, gpu in devices)
    assert all(place.gpu is None for place in layout.ranks if place.role is not Role.LEARNER)


@many
@given(jobs())
def test_servers_are_spread_over_hosts(job: Job) -> None:
    layout = job.plan()
    servers = Counter(job.hosts[r] for r in layout.servers)
    with_room = {job.hosts[r] for r in layout.actors}
    # Only a host without any rank left over may have fewer than the others.
    most = max(servers.values(), default=0)
    assert all(servers[host] >= most - 1 for host in with_room)


@many
@given(jobs())
def test_threads_share_out_the_cores_of_a_host(job: Job) -> None:
    layout = job.plan()
    size, threads = Counter(job.hosts), Counter[str]()
    for place in layout.ranks:
        threads[place.host] += place.threads
        assert place.cores == job.cores.get(place.host)
        assert place.threads >= 1
    for host, n in size.items():
        cores = max(n, job.cores.get(host, n))
        learners = sum(p.host == host and p.role is Role.LEARNER for p in layout.ranks)
        lost = cores % n % learners if learners else cores % n
        assert threads[host] == cores - lost


def test_cores_that_do_not_divide_go_to_learners_first() -> None:
    layout = plan(4, ["a"] * 4, 0, servers=1, cores_per_host=6)
    assert [(p.role, p.threads) for p in layout.ranks] == [
        ("learner", 3), ("actor", 1), ("actor", 1), ("server", 1),
    ]  # fmt: skip


def test_without_wishes() -> None:
    """CPU: one learner. GPUs: one learner for each, as far as each gets an actor."""
    assert plan(8, ["a"] * 8, 0).learners == (0,)
    block, robin = ["a"] * 8 + ["b"] * 8, ["a", "b"] * 8
    assert plan(16, block, 2).learners == (0, 1, 8, 9)
    assert plan(16, robin, 2).learners == (0, 1, 2, 3)
    assert [p.gpu for p in plan(16, robin, {"a": 2, "b": 1}).ranks[:4]] == [0, 0, 1, None]
    assert len(plan(8, ["a"] * 8, 8).learners) == 4
    assert plan(4, ["a"] * 4, {"elsewhere": 4}).ranks[0].gpu is None


def test_some_wishes_fill_the_rest() -> None:
    hosts = ["a"] * 12
    assert len(plan(12, hosts, 0, learners=3).actors) == 9
    assert len(plan(12, hosts, 0, actors=8, servers=1).learners) == 3
    assert len(plan(12, hosts, 0, actors=0, servers=2).learners) == 10
    assert plan(1, ["a"], 0, actors=0).learners == (0,)


def test_gpu_learners_take_few_hosts_and_cpu_learners_many() -> None:
    hosts = [f"n{r // 8}" for r in range(32)]
    assert plan(32, hosts, 4, learners=4).learners == (0, 1, 2, 3)
    assert plan(32, hosts, 0, learners=4).learners == (0, 8, 16, 24)
    uneven = {"n0": 1, "n1": 1, "n2": 4, "n3": 1}
    assert plan(32, hosts, uneven, learners=4).learners == (0, 16, 17, 18)


def test_servers_avoid_the_learners_host() -> None:
    layout = plan(12, ["a", "b", "c"] * 4, 0, servers=2)
    assert [layout.ranks[r].host for r in layout.servers] == ["b", "c"]


def test_learners_that_act_are_fed_by_nobody() -> None:
    layout = plan(4, ["a"] * 4, 0, actors=0)
    assert [layout.actors_of(r) for r in layout.learners] == [()] * 4
    with pytest.raises(KeyError):
        layout.learner_of(0)


@pytest.mark.parametrize(
    ("n", "gpus", "wish", "parts"),
    [
        (0, 0, {}, ["world_size=0", "at least 1"]),
        (1, 0, {}, ["needs an actor", "start at least 2 ranks", "actors=0"]),
        (4, 0, {"learners": 0}, ["learners = 0", "at least 1", "raise it"]),
        (4, 0, {"servers": -1}, ["servers = -1", "at least 0"]),
        (4, 0, {"actors": -2}, ["actors = -2", "at least 0"]),
        (4, -1, {}, ["gpus_per_host = -1", "'a'", "at least 0"]),
        (4, 0, {"learners": 3}, ["learners=3", "actors=1", "1 to 2 learners", "6 ranks"]),
        (4, 0, {"learners": 9}, ["learners=9", "needs an actor", "18 ranks"]),
        (4, 0, {"learners": 2, "actors": 1}, ["learners=2", "actors=1", "needs an actor"]),
        (4, 0, {"servers": 9}, ["4 ranks", "servers=9", "11 ranks"]),
        (4, 0, {"actors": 4}, ["actors=4", "add up to 5", "mpirun -n 5"]),
        (4, 0, {"actors": 0, "servers": 4}, ["servers=4", "add up to 5"]),
        (8, 0, {"learners": 1, "actors": 2}, ["add up to 3", "-n 3", "leave out"]),
        (8, 0, {"learners": 1, "servers": 1, "actors": 7}, ["add up to 9", "-n 9"]),
        (8, 2, {"learners": 3}, ["learners=3", "only 2", "NCCL", "1 to 2", "--device cpu"]),
        (8, 2, {"actors": 0}, ["learners=8", "only 2", "--device cpu"]),
        (8, {"b": 4}, {}, ["rank 0", "'a'", "no GPU", "start rank 0 on a GPU"]),
    ],
)
def test_impossible_wishes_are_refused_with_the_reason(
    n: int, gpus: int | dict[str, int], wish: dict[str, int], parts: list[str]
) -> None:
    with pytest.raises(LayoutError) as refusal:
        plan(n, (["a", "b"] * n)[:n], gpus if isinstance(gpus, dict) else {"a": gpus}, **wish)
    message = str(refusal.value)
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message
    assert isinstance(refusal.value, ValueError)
    assert isinstance(refusal.value, UsageError)


def test_one_host_name_per_rank() -> None:
    with pytest.raises(LayoutError, match="world_size=3, 2 hosts"):
        plan(3, ["a", "b"], 0)
    with pytest.raises(LayoutError, match="cores_per_host = 0 for 'a'"):
        plan(3, ["a"] * 3, 0, cores_per_host={"a": 0})


def test_the_table_of_a_small_job_has_a_line_per_rank() -> None:
    layout = plan(4, ["a", "b"] * 2, {"a": 1}, servers=1, cores_per_host=4)
    assert [line.split() for line in layout.table().splitlines()] == [
        ["rank", "role", "host", "cores", "threads", "GPU"],
        ["0", "learner", "a", "4", "2", "0"],
        ["1", "actor", "b", "4", "2", "-"],
        ["2", "actor", "a", "4", "2", "-"],
        ["3", "server", "b", "4", "2", "-"],
    ]


def test_the_table_of_a_large_job_is_folded() -> None:
    hosts = [f"n{r // 16}" for r in range(128)]
    rows = plan(128, hosts, 2, servers=2, cores_per_host=32).table().splitlines()
    assert [" ".join(row.split()) for row in rows] == [
        "rank role host cores threads GPU",
        "0-1,16-17,32-33,.. 112-113 (8) learner x 16 n0,n1,n2,.. n7 (8) 32 2 0-1",
        "2-14,18-30,34-47,.. 114-127 (8) actor x 110 n0,n1,n2,.. n7 (8) 32 2 -",
        "15,31 server x 2 n0,n1 32 2 -",
    ]


def test_json_holds_every_rank() -> None:
    ranks = json.loads(plan(100, ["a"] * 100, 1, cores_per_host=8).to_json())["ranks"]
    assert len(ranks) == 100
    assert ranks[0] == {
        "rank": 0, "role": "learner", "index": 0, "host": "a", "local_rank": 0, "cores": 8,
        "threads": 1, "gpu": 0,
    }  # fmt: skip


@pytest.mark.parametrize("hosts", [1, 64, 4096])
@pytest.mark.parametrize("gpus", [0, 4])
def test_4096_ranks_take_milliseconds(hosts: int, gpus: int) -> None:
    names = [f"n{r % hosts}" for r in range(MOST)]
    spent = []
    for _ in range(5):
        start = time.process_time()
        layout = plan(MOST, names, gpus, servers=64, cores_per_host=64)
        layout.actors_of(0)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.05


def test_local_layout() -> None:
    assert local_layout(2, servers=0) == 3  # measured best on 2 cores
    assert local_layout(2, servers=1) == 4
    assert local_layout(16, 2, servers=0) == 15  # one core in five is left to learners
    assert local_layout(10, servers=0) == 9
    assert local_layout(2, 8, servers=0) == 4
    assert local_layout(2, 8, servers=0, actors=8) == 10
    assert local_layout(8, servers=0, actors=0) == 8
    assert local_layout(2, learners=1, servers=0, actors=0) == 1
    for wish in ({"learners": 3, "actors": 2}, {"learners": -9}, {"actors": -1}):
        with pytest.raises(LayoutError):
            local_layout(4, servers=0, **wish)
    with pytest.raises(LayoutError, match="only 1 can have a GPU"):
        local_layout(4, 1, learners=2, servers=0)
    with pytest.raises(LayoutError, match="cores=0"):
        local_layout(0, servers=0)


counts = st.none() | st.integers(0, 40)


@many
@given(st.integers(1, 64), st.integers(0, 9), counts, st.integers(0, 4), counts)
def test_local_layout_and_plan_agree(
    cores: int, gpus: int, learners: int | None, servers: int, actors: int | None
) -> None:
    """What fits is planned with the same wishes; only explicit wishes can be impossible."""
    try:
        n = local_layout(cores, gpus, learners=learners, servers=servers, actors=actors)
    except LayoutError:
        assert learners is not None
        return
    layout = plan(n, ["x"] * n, gpus, learners=learners, servers=servers, actors=actors)
    assert len(layout.servers) == servers
    assert learners in (None, len(layout.learners))
    assert actors in (None, len(layout.actors))
    if learners is None and actors is None:
        assert len(layout.learners) == min(max(gpus, 1), cores)
        assert len(layout.actors) == max(cores - cores // 5, len(layout.learners))


@given(jobs())
def test_parameters_cross_to_another_host_once(job: Job) -> None:
    layout = job.plan()
    host = {place.rank: place.host for place in layout.ranks}
    for learner in layout.learners:
        fed = layout.actors_of(learner)
        direct = layout.published_by(learner)
        assert {a for a in fed if host[a] == host[learner]} <= set(direct)
        away = [host[a] for a in direct if host[a] != host[learner]]
        assert sorted(away) == sorted({host[a] for a in fed} - {host[learner]})
        relayed = [a for relay in direct for a in layout.published_by(relay)]
        assert sorted([*direct, *relayed]) == list(fed), "everybody gets them, from one rank"
        for actor in fed:
            publisher = layout.publisher_to(actor)
            assert actor in layout.published_by(publisher)
            assert publisher == learner or host[publisher] == host[actor]
    for server in layout.servers:
        assert layout.published_by(server) == ()
