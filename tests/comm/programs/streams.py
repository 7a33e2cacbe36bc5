"""Streams between 4 ranks: rank 0 receives, the others send. ``streams.py [SCENARIO ...]``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import random
import sys
import time
from collections import Counter, deque

import numpy as np
from scenarios import main, scenario

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.comm.record import Field, Record
from drl_mpi.comm.stream import SpreadSender, StreamError, StreamReceiver, StreamSender

SOURCES = (1, 2, 3)


def layout(size):
    numbers = [Field("source", "int64"), Field("number", "int64")]
    return Record([*numbers, Field("body", "uint8", (size,))])


def pattern(source, number, size):
    return ((np.arange(size) * 7 + source * 31 + number * 13) % 251).astype(np.uint8)


def fill(slot, source, number):
    slot["source"][...] = source
    slot["number"][...] = number
    slot["body"][:] = pattern(source, number, slot["body"].size)


def check(delivery):
    """The content is what its source wrote; returns the number."""
    slot, number = delivery.slot, int(delivery.slot["number"])
    assert slot["source"] == delivery.source
    expected = pattern(delivery.source, number, slot["body"].size)
    assert np.array_equal(slot["body"], expected), f"{delivery.source}'s record {number} changed"
    return number


def send_all(world, record, count, depth, tag, pause=lambda: None):
    """Sends ``count`` records, ends the stream, and closes."""
    poller = Poller(30.0)
    sender = StreamSender(world.comm, 0, record, depth, tag)
    for number in range(count):
        (slot,) = poller.wait(sender.free, "room")
        fill(slot, world.rank, number)
        sender.send()
        refused(lambda slot=slot: slot.fields, RuntimeError, "belongs to an MPI request")
        pause()
    poller.wait(sender.end, "the end")
    assert sender.bytes_sent == count * record.nbytes
    sender.close()


def send_now(world, sender, numbers):
    """Sends what has room, without waiting for more of it; returns how many went out."""
    sent, quiet = 0, time.perf_counter()
    while time.perf_counter() - quiet < 0.15:
        if sender.free() is None:
            time.sleep(1e-3)
            continue
        fill(sender.free()[0], world.rank, next(numbers))
        sender.send()
        sent, quiet = sent + 1, time.perf_counter()
    return sent


def meet(world, receiver=None):
    """A barrier that neither spins nor stops a receiver: large messages need both ends."""
    barrier = world.comm.Ibarrier()
    Poller(30.0).wait(lambda: (receiver and receiver.ended, barrier.Test())[1] or None, "all ranks")


def refused(action, error, text):
    """``pytest.raises`` for ranks."""
    try:
        action()
    except error as caught:
        if text not in str(caught):
            raise
        return
    raise AssertionError(f"no {error.__name__} with {text!r}")


@scenario
def everything(world, tag):
    """Random sizes, depths, counts and holding times: content, order, count and the end."""
    choose = random.Random(7)
    for _ in range(12):
        size = choose.choice([0, 1, 100, 4_096, 70_000])
        depth, ring = choose.randint(1, 4), choose.randint(1, 3)
        counts = {source: choose.choice([0, 1, 7, 30]) for source in SOURCES}
        record, seed = layout(size), choose.random()
        if world.rank:
            slow = random.Random(seed + world.rank)
            send_all(
                world, record, counts[world.rank], ring, tag,
                lambda slow=slow: time.sleep(slow.choice([0, 0, 0, 1e-3])),
            )  # fmt: skip
        else:
            receiver = StreamReceiver(world.comm, SOURCES, record, depth, tag)
            seen, held, order = Counter(), [], random.Random(seed)

            def step(receiver=receiver, seen=seen, held=held, order=order):
                delivery = receiver.take()
                if delivery is not None:
                    assert check(delivery) == seen[delivery.source], "out of order"
                    seen[delivery.source] += 1
                    held.append(delivery)
                while held and (delivery is None or len(held) > 3 or order.random() < 0.5):
                    back = held.pop(order.randrange(len(held)))  # in any order
                    check(back)  # untouched for as long as it was held
                    receiver.release(back)
                    if delivery is not None:
                        break
                return True if not held and receiver.ended else None

            Poller(30.0).wait(step, "all records")
            assert seen == Counter(counts), f"{seen} of {counts}"
            assert receiver.take() is None
            assert receiver.bytes_received == sum(counts.values()) * record.nbytes
            receiver.close()
        meet(world)


@scenario
def turns(world, tag):
    """With all sources ready, each is served once before any is served twice."""
    record, depth = layout(64), 3
    if world.rank:
        sender = StreamSender(world.comm, 0, record, depth, tag)
        for number in range(depth):
            fill(sender.free()[0], world.rank, number)
            sender.send()
        Poller(30.0).wait(lambda: sender.free(depth), "posted receives")
        meet(world)
        Poller(30.0).wait(sender.end, "the end")
    else:
        receiver = StreamReceiver(world.comm, SOURCES, record, depth, tag)
        meet(world, receiver)
        deliveries = [Poller(30.0).wait(receiver.take, "a filled record") for _ in range(9)]
        assert [d.source for d in deliveries] == [1, 2, 3] * 3, [d.source for d in deliveries]
        assert [check(d) for d in deliveries] == [0] * 3 + [1] * 3 + [2] * 3
        for delivery in deliveries:
            receiver.release(delivery)
        Poller(30.0).wait(lambda: receiver.ended or None, "the end")
        receiver.close()


@scenario
def starvation(world, tag):
    """A source that always has more does not keep a slow one waiting."""
    record, counts = layout(256), {1: 400, 2: 10, 3: 10}
    if world.rank:
        slow = world.rank != 1
        send_all(world, record, counts[world.rank], 2, tag, lambda: time.sleep(2e-3 if slow else 0))
        return
    receiver = StreamReceiver(world.comm, SOURCES, record, 2, tag)
    served = []

    def step():
        delivery = receiver.take()
        if delivery is None:
            return receiver.ended or None
        served.append(delivery.source)
        time.sleep(5e-4)
        receiver.release(delivery)
        return None

    Poller(30.0).wait(step, "all records")
    assert Counter(served) == Counter(counts)
    for source in (2, 3):
        last = max(i for i, s in enumerate(served) if s == source)
        assert last < 250, f"source {source} was done only after {last} records"
    receiver.close()


@scenario
def flow(world, tag):
    """A receiver that takes nothing stops its senders after depth + ring records."""
    for depth, ring in ((1, 1), (2, 3)):
        record = layout(100)
        if world.rank:
            numbers = iter(range(1000))
            sender = StreamSender(world.comm, 0, record, ring, tag)
            meet(world)
            sent = send_now(world, sender, numbers)
            assert sent == depth + ring, f"{sent} went out at depth {depth} and ring {ring}"
            for _ in range(3):
                meet(world)
                meet(world)
                sent = send_now(world, sender, numbers)
                assert sent == 1, f"{sent} went out after 1 was released"
            meet(world)
            Poller(30.0).wait(sender.end, "the end")
            sender.close()
        else:
            receiver = StreamReceiver(world.comm, SOURCES, record, depth, tag)
            taken = Counter()
            meet(world)
            for _ in range(3):
                meet(world, receiver)
                for delivery in [receiver.take(source) for source in SOURCES]:
                    assert check(delivery) == taken[delivery.source]
                    taken[delivery.source] += 1
                    receiver.release(delivery)
                meet(world, receiver)
            meet(world, receiver)

            def step(receiver=receiver, taken=taken):
                while (delivery := receiver.take()) is not None:
                    taken[delivery.source] += 1
                    receiver.release(delivery)
                return receiver.ended or None

            Poller(30.0).wait(step, "the rest")
            assert taken == Counter(dict.fromkeys(SOURCES, depth + ring + 3))
            receiver.close()
        meet(world)


@scenario
def fixed_order(world, tag):
    """``take(source)`` looks at that source only, whatever else is there."""
    record = layout(16)
    if world.rank:
        if world.rank == 3:
            world.comm.recv(source=0, tag=tag + 1)
        send_all(world, record, 2, 2, tag)
        return
    poller = Poller(30.0)
    receiver = StreamReceiver(world.comm, SOURCES, record, 2, tag)
    for source, number in ((2, 0), (1, 0), (1, 1), (2, 1)):  # the others wait their turn
        delivery = poller.wait(lambda source=source: receiver.take(source), "that source")
        assert delivery.source == source
        assert check(delivery) == number
        receiver.release(delivery)
        assert receiver.take(3) is None
    assert receiver.take(1) is None, "source 1 has sent no more than 2"
    world.comm.send(None, 3, tag=tag + 1)
    for number in range(2):
        delivery = poller.wait(lambda: receiver.take(3), "source 3")
        assert check(delivery) == number
        receiver.release(delivery)
    poller.wait(lambda: receiver.ended or None, "the end")
    receiver.close()


@scenario
def several_at_once(world, tag):
    """``free(n)`` hands out the ring's next n slots in the order in which they are sent."""
    record = layout(32)
    if world.rank:
        poller = Poller(30.0)
        sender = StreamSender(world.comm, 0, record, 4, tag)
        numbers = iter(range(100))
        for _ in range(6):
            slots = poller.wait(lambda: sender.free(2), "room for two")
            for slot in slots:
                fill(slot, world.rank, next(numbers))
            for _ in slots:
                sender.send()
        refused(lambda: sender.free(5), ValueError, "the ring has 4")
        Poller(30.0).wait(sender.end, "the end")
        return
    receiver = StreamReceiver(world.comm, SOURCES, record, 4, tag)
    seen = Counter()

    def step():
        while (delivery := receiver.take()) is not None:
            assert check(delivery) == seen[delivery.source]
            seen[delivery.source] += 1
            receiver.release(delivery)
        return receiver.ended or None

    Poller(30.0).wait(step, "the end")
    assert seen == Counter({1: 12, 2: 12, 3: 12})


@scenario
def unasked_send(world, tag):
    """A slot under way is not sent a second time."""
    record = layout(8)
    if world.rank == 1:
        sender = StreamSender(world.comm, 0, record, 1, tag)
        sender.free()
        sender.send()
        refused(sender.send, RuntimeError, "call free() before send()")
        assert sender.bytes_sent == record.nbytes
        Poller(30.0).wait(sender.end, "the end")
    elif world.rank == 0:
        receiver = StreamReceiver(world.comm, (1,), record, 2, tag)
        Poller(30.0).wait(receiver.take, "the record")
        Poller(30.0).wait(lambda: receiver.ended or None, "the end")


@scenario
def end_behind_data(world, tag):
    """A stream has not ended while records that arrived before the end are still to be taken."""
    record = layout(50)
    if world.rank:
        send_all(world, record, 2, 2, tag)
        meet(world)
        return
    receiver = StreamReceiver(world.comm, SOURCES, record, 3, tag)
    meet(world, receiver)  # everything is here now, the ends too
    taken = deque()
    for _ in range(6):
        assert not receiver.ended
        taken.append(Poller(30.0).wait(receiver.take, "a record"))
    assert receiver.ended
    assert receiver.take() is None
    assert sorted((d.source, check(d)) for d in taken) == [(s, n) for s in SOURCES for n in (0, 1)]
    receiver.close()


def spread_to_both(world, record, tag):
    """Ranks 2 and 3 send 4 records per unroll, half of them to rank 0 and half to rank 1."""
    senders = [StreamSender(world.comm, rank, record, 4, tag) for rank in (0, 1)]
    return SpreadSender(senders, 4), senders


@scenario
def spread(world, tag):
    """Of every unroll each receiver gets its block, whole and in order, and then the end."""
    record, unrolls, poller = layout(5_000), 25, Poller(30.0)
    if world.rank in (2, 3):
        sender, senders = spread_to_both(world, record, tag)
        slow = random.Random(world.rank)
        for unroll in range(unrolls):
            slots = poller.wait(lambda: sender.free(4), "room for an unroll")
            for i, slot in enumerate(slots):
                fill(slot, world.rank, 4 * unroll + i)
            for _ in slots:
                sender.send()
            time.sleep(slow.choice([0, 0, 1e-3]))
            sender.progress()
        poller.wait(sender.end, "both ends")
        assert sender.end() is True
        assert [each.bytes_sent for each in senders] == [2 * unrolls * record.nbytes] * 2
        sender.close()
        return
    receiver = StreamReceiver(world.comm, (2, 3), record, 2, tag)
    numbers = {2: [], 3: []}

    def step():
        while (delivery := receiver.take()) is not None:
            numbers[delivery.source].append(check(delivery))
            receiver.release(delivery)
        return receiver.ended or None

    poller.wait(step, "the end")
    expected = [n for n in range(4 * unrolls) if n % 4 // 2 == world.rank]
    assert numbers == {2: expected, 3: expected}
    receiver.close()


@scenario
def spread_waits_for_all(world, tag):
    """While one receiver is behind, nothing goes to the other: unrolls are not torn apart."""
    record, poller = layout(100), Poller(30.0)
    if world.rank in (2, 3):
        sender, senders = spread_to_both(world, record, tag)
        sent = 0
        while True:
            try:
                slots = Poller(1.0).wait(lambda: sender.free(4), "room")
            except SilenceError:
                break
            for i, slot in enumerate(slots):
                fill(slot, world.rank, 4 * sent + i)
            for _ in slots:
                sender.send()
            sent += 1
        # 2 posted receives and a ring of 4 take 6 records of 2 per unroll.
        assert sent == 3, f"{sent} unrolls went out"
        assert [each.bytes_sent for each in senders] == [2 * sent * record.nbytes] * 2
        world.comm.isend(None, 1, tag=tag + 1).wait()
        poller.wait(lambda: sender.free(4), "room, when rank 1 takes what is there")
        poller.wait(sender.end, "both ends")
        sender.close()
        return
    receiver = StreamReceiver(world.comm, (2, 3), record, 2, tag)
    if world.rank == 1:
        for source in (2, 3):
            request = world.comm.irecv(source=source, tag=tag + 1)
            poller.wait(lambda request=request: request.test()[0] or None, "full rings")
    taken = Counter()

    def step():
        while (delivery := receiver.take()) is not None:
            check(delivery)
            taken[delivery.source] += 1
            receiver.release(delivery)
        return receiver.ended or None

    poller.wait(step, "the end")
    assert taken == Counter({2: 6, 3: 6})
    receiver.close()


def _wrong_size(world, tag, extra):
    record = layout(100)
    if world.rank == 2:
        wrong = np.zeros(record.nbytes + extra, np.uint8)
        request = world.comm.Isend([wrong, MPI.BYTE], 0, tag)
        request.Wait()
    elif world.rank == 0:
        receiver = StreamReceiver(world.comm, SOURCES, record, 2, tag)
        # MPI cuts off what does not fit, and then tells no length.
        said = (
            f"a message of more than a record's {record.nbytes} bytes arrived"
            if extra > 0
            else f"rank 2 sent {record.nbytes + extra} bytes where a record has {record.nbytes}"
        )
        refused(lambda: Poller(5.0).wait(receiver.take, "a message"), StreamError, said)


@scenario
def too_short(world, tag):
    _wrong_size(world, tag, -10)


@scenario
def too_long(world, tag):
    _wrong_size(world, tag, 64)


main(sys.argv[1:])
