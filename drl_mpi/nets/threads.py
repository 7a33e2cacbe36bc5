"""What a thread has to say to torch before it computes beside others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

_LIMIT = os.environ.get("OMP_THREAD_LIMIT", "").strip()
MOST_THREADS = int(_LIMIT) if _LIMIT.isdecimal() and int(_LIMIT) > 0 else None
"""OpenMP's own limit, which it reads once, or ``None``. MKL would wait for ever for threads that
OpenMP does not give it."""


def use_threads(count: int) -> None:
    """Sets the number of torch's threads for the calling thread.

    A thread's first parallel call takes over the number that was last set anywhere: asking for the
    number first makes ours the last word. It is never more than ``MOST_THREADS``.
    """
    if MOST_THREADS is not None:
        count = min(count, MOST_THREADS)
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """What the calling thread computes in here is the same however many threads it may use."""
    before = torch.get_num_threads()
    use_threads(1)
    try:
        yield
    finally:
        use_threads(before)


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A CUDA stream for what one thread computes; nothing on the CPU.

    It may be entered again and again. Streams do not wait for one another: who hands over a tensor
    must have waited for it (``item``, ``cpu``), and who takes one over waits for its maker's
    stream.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(stream)
