"""The doctor's judgement of hosts, messages and files, from made-up facts."""

from __future__ import annotations

from dataclasses import replace

from drl_mpi.run.doctor.checks import folder, host, messages
from drl_mpi.run.doctor.facts import Folder, Link
from drl_mpi.run.doctor.testing import GB, PYTHON, only, rank, survey

CUDA = replace(PYTHON, torch_cuda="13.0", gpu_names=("NVIDIA H100",))


def test_gpus():
    assert only(host.gpus(survey()), "ok") == "none; learners use cores"
    with_gpus = {"gpus": 4, "gpu_files": 4, "software": CUDA}
    alike = survey(rank(0, **with_gpus), rank(1, "node2", **with_gpus))
    assert only(host.gpus(alike), "ok") == "4 on each host: NVIDIA H100"
    mixed = survey(rank(0, **with_gpus), rank(1, "node2"))
    assert "hosts differ: 4 on node1; 0 on node2" in only(host.gpus(mixed), "warn")


def test_torch_without_cuda():
    text = only(host.gpus(survey(rank(0, gpu_files=2), rank(1, "node2"))), "warn")
    assert "2 GPUs on node1, but torch has no CUDA" in text


def test_gpus_that_the_driver_does_not_offer():
    bad = survey(rank(0, gpu_files=2, software=CUDA))
    assert "the driver offers none on node1" in only(host.gpus(bad), "warn")


def test_gpus_that_are_hidden_on_purpose():
    hidden = survey(rank(0, gpu_files=2, software=CUDA, cuda_visible=""))
    assert "none of 2 visible" in only(host.gpus(hidden), "ok")


def test_gpus_per_task():
    ranks = [rank(i, gpus=1, gpu_files=2, cuda_visible=str(i), software=CUDA) for i in range(2)]
    text = only(host.gpus(survey(*ranks)), "warn")
    assert "ranks of node1 see different ones (CUDA_VISIBLE_DEVICES 0, 1)" in text
    assert "--gpus-per-node" in text


def test_memory():
    def free(amount):
        """On the second host, which has two ranks."""
        pair = [rank(i, "node2", memory=amount) for i in (1, 2)]
        return host.memory(survey(rank(0), *pair))

    assert only(free(4 * GB), "ok") == "4 GB free for 2 ranks on node2, the tightest"
    assert "300 MB" in only(free(GB // 2), "warn")
    assert "200 MB free for 2 ranks on node2" in only(free(GB // 5), "fail")


def test_shared_memory():
    assert only(host.shared_memory(survey()), "ok") == "32 GB free on node1"
    docker = {"shm_total": 64 * 1024**2, "shm_free": 60 * 1024**2}
    ranks = [rank(i, **docker) for i in range(5)]
    text = only(host.shared_memory(survey(*ranks)), "warn")
    assert "62.9 MB of 67.1 MB free on node1; MPI may take 83.9 MB" in text
    assert "--shm-size" in text
    only(host.shared_memory(survey(*ranks[:4])), "ok")
    full = survey(rank(0), rank(1, "node2", shm_free=10**6))
    assert "1 MB of 32 GB free on node2" in only(host.shared_memory(full), "warn")
    missing = survey(rank(0, shm_total=None, shm_free=None))
    assert "missing on node1" in only(host.shared_memory(missing), "warn")


def test_limits():
    assert only(host.limits(survey()), "ok") == "65536 open files"
    assert "unlimited" in only(host.limits(survey(rank(open_files=None))), "ok")
    low = survey(rank(0), rank(1, "node2", open_files=256))
    assert "256 open files on node2; 264 are safe -> ulimit -n" in only(host.limits(low), "warn")
    infiniband = survey(rank(verbs=True, locked_memory=65536))
    assert "66 KB may be locked on node1" in only(host.limits(infiniband), "warn")
    only(host.limits(survey(rank(verbs=False, locked_memory=65536))), "ok")
    only(host.limits(survey(rank(verbs=True, locked_memory=None))), "ok")


def with_links(*links, **other):
    return survey(links=links, **other)


NEAR = Link((0, 1), ("node1", "node1"), 1.5, 7.0)
FAR = Link((0, 2), ("node1", "node2"), 30.0, 1.2)


def test_latency():
    good = with_links(NEAR, replace(NEAR, latency_us=2.0), FAR)
    text = only(messages.latency(good), "ok")
    assert text == "2.0 us on a host (worst of 2 pairs); 30.0 us between hosts (1 pair)"
    text = only(messages.latency(with_links(NEAR, replace(FAR, latency_us=1500))), "warn")
    assert "1500.0 us between hosts (1 pair), ranks 0 (node1) and 2 (node2) -> " in text
    assert "btl_tcp_if_include" in text
    text = only(messages.latency(with_links(replace(NEAR, latency_us=4000), FAR)), "warn")
    assert "ranks 0 and 1 of node1" in text
    assert "fewer ranks" in text


def test_bandwidth():
    text = only(messages.bandwidth(with_links(NEAR, FAR, replace(FAR, gigabytes_per_s=0.4))), "ok")
    assert text == "7 GB/s on a host (1 pair); 0.4 GB/s between hosts (worst of 2 pairs)"
    slow = with_links(NEAR, replace(FAR, gigabytes_per_s=0.05))
    assert "0.05 GB/s between hosts" in only(messages.bandwidth(slow), "warn")


def test_lost_messages():
    lost = with_links(link_error="between ranks 0 (node1) and 2 (node2)")
    text = only(messages.latency(lost), "fail")
    assert "no messages between ranks 0 (node1) and 2 (node2) -> a firewall" in text


def test_pairs_for_which_there_was_no_time_are_counted():
    assert "no time for 3 pairs" in only(messages.latency(with_links(NEAR, unmeasured=3)), "ok")


def test_nobody_to_exchange_messages_with():
    assert messages.latency(with_links()) == messages.bandwidth(with_links()) == []


def with_folders(*folders):
    return survey(folders=dict(zip(("node1", "node2", "node3"), folders)), run_dir="runs/x")


GOOD = Folder("nfs4", free=100 * GB, sync_ms=4.0)


def test_the_folder():
    text = only(folder.usable(with_folders(GOOD, replace(GOOD, free=50 * GB))), "ok")
    assert text == "runs/x on nfs4, 50 GB free, a small file is on disk in 4.0 ms"
    tight = with_folders(GOOD, replace(GOOD, free=GB))
    assert "1 GB free" in only(folder.usable(tight), "warn")
    full = with_folders(replace(GOOD, free=10**6))
    assert "1 MB free" in only(folder.usable(full), "fail")
    locked = with_folders(GOOD, replace(GOOD, error="Read-only file system"))
    text = only(folder.usable(locked), "fail")
    assert "'runs/x' cannot be used on node2: Read-only file system -> choose another one" in text


def test_the_same_folder_everywhere():
    assert folder.shared(with_folders(GOOD)) == []
    assert "all 3 hosts" in only(folder.shared(with_folders(GOOD, GOOD, GOOD)), "ok")
    elsewhere = replace(GOOD, error="is not a folder here", same=False)
    split = with_folders(GOOD, elsewhere, replace(GOOD, same=False))
    text = only(folder.shared(split), "fail")
    assert "what rank 0 wrote in runs/x is not seen on node2, node3" in text
    only(folder.usable(split), "ok")  # one cause, one line


def test_locks():
    only(folder.locks(with_folders(GOOD, GOOD)), "ok")
    bad = replace(GOOD, lock_error="unable to lock file")
    text = only(folder.locks(with_folders(GOOD, bad)), "warn")
    assert "on node2: unable to lock file -> export HDF5_USE_FILE_LOCKING=FALSE" in text
    assert folder.locks(with_folders(replace(GOOD, error="Permission denied"))) == []
