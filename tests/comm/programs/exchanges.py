"""Exchanges between 4 ranks: rank 0 answers, the others ask. ``exchanges.py SCENARIO ...``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import random
import signal
import sys
import time
from collections import Counter

import numpy as np
from scenarios import main, meet, scenario

from drl_mpi.comm import exchange
from drl_mpi.comm.exchange import ExchangeClient, ExchangeServer
from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Field, Record

CLIENTS = (1, 2, 3)
LIMIT_S = 60.0
REQUEST, ANSWER = 1, 2
"""The two ways that a message may go: the same numbers give other contents."""
OWNED = "belongs to an MPI request"


def layout(size):
    numbers = [Field(name, "int64") for name in ("way", "client", "channel", "number")]
    return Record([*numbers, Field("body", "uint8", (size,))])


def pattern(size, way, client, channel, number):
    start = way * 101 + client * 31 + channel * 57 + number * 13
    return ((np.arange(size) * 7 + start) % 251).astype(np.uint8)


def fill(slot, way, client, channel, number):
    for name, value in zip(("way", "client", "channel", "number"), (way, client, channel, number)):
        slot[name][...] = value
    slot["body"][:] = pattern(slot["body"].size, way, client, channel, number)


def check(slot, way, client, channel, number):
    """The slot holds exactly what ``fill`` wrote."""
    found = tuple(int(slot[name]) for name in ("way", "client", "channel", "number"))
    assert found == (way, client, channel, number), f"{found} is not {way, client, channel, number}"
    assert np.array_equal(slot["body"], pattern(slot["body"].size, *found)), f"{found} changed"


def refused(action, text):
    """``pytest.raises`` for ranks."""
    try:
        action()
    except RuntimeError as caught:
        if text not in str(caught):
            raise
        return
    raise AssertionError(f"no RuntimeError with {text!r}")


def end(world, tag, channels, request, answer, clients=CLIENTS):
    """This rank's end of an exchange; ``None`` for one that takes no part."""
    if world.rank == 0:
        return ExchangeServer(world.comm, clients, channels, request, answer, tag)
    if world.rank in clients:
        return ExchangeClient(world.comm, 0, channels, request, answer, tag)
    return None


def tested(requests):
    """Drives plain requests until they are complete."""
    Poller(LIMIT_S).wait(lambda: MPI.Request.Testall(requests) or None, "plain messages")


def collect(look, count):
    """What is found, until it is so much."""
    found = []
    while len(found) < count:
        found += Poller(LIMIT_S).wait(lambda: look() or None, "messages")
    return found


def ask_at_random(world, client, channels, count, thinks):
    """Asks ``count`` times on each channel, some time after it was answered."""
    rank, choose = world.rank, random.Random(world.rank)
    numbers, waiting = [0] * channels, set()
    due = dict.fromkeys(range(channels), 0.0)

    def step():
        for channel in client.answered():
            waiting.remove(channel)
            check(client.answer(channel), ANSWER, rank, channel, numbers[channel])
            client.request(channel).buffer.fill(255)  # ours again: no harm is done
            numbers[channel] += 1
            if numbers[channel] < count:
                due[channel] = time.perf_counter() + choose.choice(thinks)
        for channel in [c for c, when in due.items() if when <= time.perf_counter()]:
            del due[channel]
            fill(client.request(channel), REQUEST, rank, channel, numbers[channel])
            client.ask(channel)
            waiting.add(channel)
        client.progress()
        return None if due or waiting else True

    Poller(LIMIT_S).wait(step, "all answers")
    client.close()


def answer_at_random(server, channels, count, request, answer):
    """Answers in random order, after a random while; the last ones say that they are."""
    choose, held = random.Random(7), []
    numbers = {(client, channel): 0 for client in CLIENTS for channel in range(channels)}

    def step():
        for asked in server.poll():
            assert not asked.fault, asked
            key = asked.client, asked.channel
            assert key not in held
            check(server.request(*key), REQUEST, *key, numbers[key])
            held.append(key)
        for _ in range(choose.randint(0, len(held))):
            key = held.pop(choose.randrange(len(held)))
            check(server.request(*key), REQUEST, *key, numbers[key])  # untouched while it waited
            fill(server.answer(*key), ANSWER, *key, numbers[key])
            numbers[key] += 1
            server.send(*key, last=numbers[key] == count)
        return server.drained() if set(numbers.values()) == {count} else None

    Poller(LIMIT_S).wait(step, "all requests")
    total = count * len(numbers)
    assert server.bytes_received == total * request.nbytes
    assert server.bytes_sent == total * answer.nbytes
    assert server.poll() == []
    server.close()


@scenario
def own_answers(world, tag):
    """Each gets the answers to its own requests, by the channel that it asked by; 3,540 of them."""
    for channels, count, size, back in ((4, 250, 100, 10), (1, 60, 0, 3_000), (12, 10, 1, 1)):
        request, answer = layout(size), layout(back)
        both = end(world, tag, channels, request, answer)
        if world.rank:
            ask_at_random(world, both, channels, count, (0.0, 0.0, 1e-4, 2e-3))
        else:
            answer_at_random(both, channels, count, request, answer)
        meet(world)


@scenario
def large(world, tag):
    """Messages that do not go out before the other end is ready."""
    for size, back, count in ((70_000, 200_000, 30), (3_000_000, 100, 5), (100, 3_000_000, 5)):
        request, answer = layout(size), layout(back)
        both = end(world, tag, 2, request, answer)
        if world.rank:
            ask_at_random(world, both, 2, count, (0.0, 1e-3))
        else:
            answer_at_random(both, 2, count, request, answer)
        meet(world)


@scenario
def owned(world, tag):
    """Nobody reads or writes what MPI has at the moment, and nobody speaks out of turn."""
    both = end(world, tag, 2, layout(50), layout(70), clients=(1, 2))
    if world.rank in (1, 2):
        for number in range(3):
            for channel in (0, 1):
                assert not both.request(channel).busy
                fill(both.request(channel), REQUEST, world.rank, channel, number)
                both.ask(channel)
                assert both.request(channel).busy
                assert both.answer(channel).busy
                refused(lambda channel=channel: both.request(channel).fields, OWNED)
                refused(lambda channel=channel: both.answer(channel).fields, OWNED)
                refused(lambda channel=channel: both.ask(channel), "it cannot ask again")
            meet(world)  # now it is answered, on channel 1 only
            got = Poller(LIMIT_S).wait(lambda: both.answered() or None, "the answer")
            assert got == [1]
            check(both.answer(1), ANSWER, world.rank, 1, number)
            assert not both.request(1).busy
            refused(lambda: both.answer(0).fields, OWNED)
            refused(lambda: both.ask(0), "channel 0 waits for an answer: it cannot ask again")
            meet(world)
            got = Poller(LIMIT_S).wait(lambda: both.answered() or None, "the other answer")
            assert got == [0]
            check(both.answer(0), ANSWER, world.rank, 0, number)
            check(both.answer(1), ANSWER, world.rank, 1, number)  # for as long as it does not ask
        both.close()
        return
    if world.rank == 3:
        for _ in range(6):
            meet(world)
        return
    keys = [(client, channel) for channel in (1, 0) for client in (1, 2)]
    for number in range(3):
        if number == 0:
            for key in keys:  # nobody has been heard of yet, whether a request lies here or not
                refused(lambda key=key: both.request(*key).fields, OWNED)
                refused(lambda key=key: both.send(*key), f"rank {key[0]} has not asked on channel ")
        here = collect(both.poll, 4)
        assert both.poll() == []
        assert Counter((asked.client, asked.channel) for asked in here) == Counter(keys)
        for i, key in enumerate(keys):
            check(both.request(*key), REQUEST, *key, number)
            fill(both.answer(*key), ANSWER, *key, number)
            both.send(*key, last=number == 2)
            refused(lambda key=key: both.answer(*key).fields, OWNED)
            if number < 2:
                refused(lambda key=key: both.request(*key).fields, OWNED)
                refused(lambda key=key: both.send(*key), "answer it later")
            else:
                check(both.request(*key), REQUEST, *key, number)
            if i == 1:  # channel 1 is answered; channel 0 only when that was seen
                meet(world)
                meet(world)
    Poller(LIMIT_S).wait(both.drained, "all answers to be received")
    for key in keys:
        fill(both.answer(*key), ANSWER, *key, 0)  # ours again
    both.close()


def plain(world, tag, nbytes, value):
    """A message past the exchange; to rank 0."""
    return world.comm.Isend([np.full(nbytes, value, np.uint8), MPI.BYTE], 0, tag)


@scenario
def last(world, tag):
    """Behind the last answer nothing is received any more, on that channel only."""
    request, answer = layout(10), layout(20)
    both = end(world, tag, 2, request, answer, clients=(1,))
    if world.rank == 1:
        for channel in (0, 1):
            fill(both.request(channel), REQUEST, 1, channel, 0)
            both.ask(channel)
        collect(both.answered, 2)
        sent = [plain(world, tag + channel, request.nbytes, 9) for channel in (0, 1)]
        meet(world)
        tested(sent)
        both.close()
    elif world.rank == 0:
        collect(both.poll, 2)
        for channel in (0, 1):
            fill(both.answer(1, channel), ANSWER, 1, channel, 0)
            both.send(1, channel, last=channel == 0)
        meet(world)
        late = Poller(LIMIT_S).wait(lambda: both.poll() or None, "channel 1")
        assert [(asked.client, asked.channel) for asked in late] == [(1, 1)]
        assert (both.request(1, 1)["body"] == 9).all()
        check(both.request(1, 0), REQUEST, 1, 0, 0)  # nothing was put there
        Poller(LIMIT_S).wait(lambda: world.comm.Iprobe(1, tag) or None, "what nobody received")
        assert both.poll() == []
        world.comm.Recv([np.empty(request.nbytes, np.uint8), MPI.BYTE], 1, tag)
        Poller(LIMIT_S).wait(both.drained, "the answers to be received")
        both.close()
    else:
        meet(world)


@scenario
def nothing_left(world, tag):
    """Answers count as received when they were; after ``close`` no receive is posted."""
    request, answer = layout(10), layout(2_000_000)
    both = end(world, tag, 3, request, answer, clients=(1, 2))
    if world.rank in (1, 2):
        for channel in range(3):
            fill(both.request(channel), REQUEST, world.rank, channel, 0)
            both.ask(channel)
        meet(world)
        time.sleep(0.2)  # no call of MPI: a large answer cannot arrive
        collect(both.answered, 3)
        for channel in range(3):
            check(both.answer(channel), ANSWER, world.rank, channel, 0)
        both.close()
        meet(world)
        tested([plain(world, tag + channel, 5, world.rank) for channel in range(3)])
        return
    if world.rank == 3:
        meet(world)
        meet(world)
        return
    assert both.drained() is True, "nothing was sent yet"
    here = collect(both.poll, 6)
    for asked in here:
        fill(both.answer(asked.client, asked.channel), ANSWER, asked.client, asked.channel, 0)
        both.send(asked.client, asked.channel)  # not the last ones: all receives are posted
    assert both.drained() is None, "a large answer counts as received before it was"
    meet(world)
    Poller(LIMIT_S).wait(both.drained, "the answers to be received")
    assert both.drained() is True
    both.close()
    meet(world)
    for client in (1, 2):
        for channel in range(3):
            room = np.zeros(5, np.uint8)
            tested([world.comm.Irecv([room, MPI.BYTE], client, tag + channel)])
            assert (room == client).all(), "a receive of the exchange took it"


def ask_in_other_size(world, client, channel, tag, nbytes):
    """As ``client.ask``, with so many bytes of nonsense."""
    client.request(channel).busy = client.answer(channel).busy = True
    client._receives[channel].Start()
    return plain(world, tag + channel, nbytes, 255)


@scenario
def wrong_sizes(world, tag):
    """A message of another size is told of by its client and channel; all others stay whole."""
    for size in (40, 9_000):  # the larger ones, and what is beyond them, wait for their receives
        n = layout(size).nbytes
        sizes = [n] * 12 + [0, 1, n - 1, n - 64, n + 1, n + 64, 2 * n, n + 100_000]
        _ask_wrongly(
            world, tag, size, sizes, lambda nbytes, n=n: f"{nbytes} bytes where a request has {n}"
        )


@scenario
def cut_off(world, tag):
    """The same where MPI has no room for what is too long."""
    n, room = layout(40).nbytes, exchange.ROOM
    exchange.ROOM = 0

    def fault(nbytes):
        if nbytes > n:
            return "a request that cannot be received: MPI_ERR_TRUNCATE: message truncated"
        return f"{nbytes} bytes where a request has {n}"

    _ask_wrongly(world, tag, 40, [n] * 12 + [0, n - 64, n + 1, n + 64, 2 * n, 3 * n], fault)
    exchange.ROOM = room


def _ask_wrongly(world, tag, size, sizes, fault):
    """All channels ask together with messages of some ``sizes``, round after round."""
    channels, rounds, choose = 3, 60, random.Random(11)
    request, answer = layout(size), layout(30)
    n = request.nbytes
    both = end(world, tag, channels, request, answer)
    keys = [(client, channel) for client in CLIENTS for channel in range(channels)]
    mixed = received = 0
    for number in range(rounds):
        bytes_of = {key: choose.choice(sizes) for key in keys}
        if world.rank:
            _ask_some_wrongly(world, both, tag, bytes_of, request, number)
            continue
        meet(world)  # everybody has asked
        here = {}
        while len(here) < len(keys):
            arrived = both.poll()
            time.sleep(0 if arrived else 1e-4)
            mixed += len({bool(asked.fault) for asked in arrived}) == 2
            for asked in arrived:
                key = asked.client, asked.channel
                assert key not in here, f"{key} twice"
                here[key] = asked.fault
                if bytes_of[key] == n:
                    check(both.request(*key), REQUEST, *key, number)
        for key, said in here.items():
            assert said == ("" if bytes_of[key] == n else fault(bytes_of[key])), (key, said)
            if bytes_of[key] == n:
                check(both.request(*key), REQUEST, *key, number)  # nor have others changed it
            if "cannot be received" not in said:
                received += bytes_of[key]
            fill(both.answer(*key), ANSWER, *key, number)
            both.send(*key, last=number == rounds - 1)
    if world.rank == 0:
        assert both.bytes_received == received, "bytes of what could be received"
        assert mixed > rounds // 4, f"only {mixed} calls brought both good and bad requests"
        Poller(LIMIT_S).wait(both.drained, "the answers to be received")
    both.close()
    meet(world)


def _ask_some_wrongly(world, both, tag, bytes_of, request, number):
    channels, sent = len(bytes_of) // len(CLIENTS), []
    for channel in range(channels):
        nbytes = bytes_of[world.rank, channel]
        if nbytes == request.nbytes:
            fill(both.request(channel), REQUEST, world.rank, channel, number)
            both.ask(channel)
        else:
            sent.append(ask_in_other_size(world, both, channel, tag, nbytes))
    meet(world)
    collect(both.answered, channels)
    for channel in range(channels):
        check(both.answer(channel), ANSWER, world.rank, channel, number)
    tested(sent)


@scenario
def close_on_nonsense(world, tag):
    """What comes when no more requests are wanted does no harm, whatever it is."""
    request, answer = layout(10), layout(20)
    for extra in (0, -1, 64):
        if world.rank:
            sent = plain(world, tag, request.nbytes + extra, 3)
            meet(world)
            tested([sent])
        else:
            both = ExchangeServer(world.comm, CLIENTS, 1, request, answer, tag)
            meet(world)  # it is here, and nobody has looked
            both.close()
        meet(world)


@scenario
def leave_unanswered(world, tag):
    """A client may leave while answers are due, whether its requests were received or not."""
    for size in (10, 500_000):
        request, answer = layout(size), layout(20)
        both = end(world, tag, 2, request, answer, clients=(1, 2))
        if both is not None and world.rank:
            fill(both.request(0), REQUEST, world.rank, 0, 0)
            both.ask(0)
            meet(world, both.progress)
            meet(world)
            fill(both.request(1), REQUEST, world.rank, 1, 0)
            both.ask(1)  # nobody receives it any more
            signal.alarm(20)  # ends this rank, and so the job
            both.close()
            signal.alarm(0)
        else:
            meet(world)
            if both is not None:
                collect(both.poll, 2)
                for client in (1, 2):
                    check(both.request(client, 0), REQUEST, client, 0, 0)
                both.close()
            meet(world)
        meet(world)


@scenario
def several_at_once(world, tag):
    """However many answers lie there, each channel is told of once."""
    both = end(world, tag, 5, layout(8), layout(8), clients=(1,))
    if world.rank == 1:
        for _ in range(20):
            for channel in range(5):
                both.ask(channel)
            meet(world)
            got = both.answered()
            got += collect(both.answered, 5 - len(got))
            assert sorted(got) == list(range(5)), got
            assert both.answered() == []
        both.close()
        return
    for number in range(20):
        if world.rank == 0:
            collect(both.poll, 5)
            for channel in (3, 0, 4, 1, 2):
                both.send(1, channel, last=number == 19)
        meet(world)
    if world.rank == 0:
        Poller(LIMIT_S).wait(both.drained, "the answers to be received")
        both.close()


@scenario
def latency(world, tag):
    """A round trip between two ranks that have nothing else to do takes little."""
    both = end(world, tag, 1, layout(7_000), layout(100), clients=(1,))
    poller, count, took = Poller(LIMIT_S), 400, []
    poller.be_brisk()  # as both ends are; with longer sleeps they fall into step, or do not
    if world.rank == 1:
        for _ in range(count):
            began = time.perf_counter()
            both.ask(0)
            assert poller.wait(lambda: both.answered() or None, "the answer") == [0]
            took.append(time.perf_counter() - began)
        both.close()
        # Other people's jobs only add to it, so the bound is for the best tenth.
        best, middle = np.percentile(took, (10, 50)) * 1e6
        print(f"round trip: median {middle:.0f} us, best tenth {best:.0f} us")
        assert best < 2e3, f"{best} us"
    elif world.rank == 0:
        for number in range(count):
            (asked,) = poller.wait(lambda: both.poll() or None, "the request")
            assert asked.client == 1
            both.send(1, 0, last=number == count - 1)
        poller.wait(both.drained, "the last answer to be received")
        both.close()


main(sys.argv[1:], spacing=20)
