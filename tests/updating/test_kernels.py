"""The steps in C get the bits of the NumPy rules, and are there where a compiler is."""

from __future__ import annotations

import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drl_mpi.updating import kernels
from drl_mpi.updating.shard_optimizers import make_shard_optimizer

KINDS: list[tuple[str, dict[str, float]]] = [
    ("adagrad", {}),
    ("rmsprop", {}),
    ("rmsprop", {"momentum": 0.9}),
    ("centred-rmsprop", {}),
    ("adam", {}),
]
each_kind = pytest.mark.parametrize(("name", "values"), KINDS)
in_c = pytest.mark.skipif(kernels.LIBRARY is None, reason="kernels.c was not built")
STEPS = 3
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 1.17549435e-38, 3e38, -3e38,
     1e19, 2e19, 1e-20, 1e-23], dtype=np.float32
)  # fmt: skip


def draw(rng: np.random.Generator, n: int, wild: bool, offset: int = 0) -> np.ndarray:
    """Like gradients or, wild, any bits and what is special; address: `offset` x 4 bytes off 64."""
    vector = (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 3, n)).astype(np.float32)
    if wild:
        bits = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
        vector = np.choose(rng.integers(0, 3, n), [vector, bits, rng.choice(SPECIAL, n)])
    room = np.empty(n + 32, dtype=np.float32)
    start = -room.ctypes.data % 64 // 4 + offset
    room[start : start + n] = vector
    return room[start : start + n]


def bits_of(vector: np.ndarray) -> np.ndarray:
    """With one NaN for all: which of two operands hands its payload on is the compiler's choice."""
    return np.where(np.isnan(vector), np.float32(np.nan), vector).view(np.uint32)


def steps_of(
    implementation: str,
    name: str,
    values: dict[str, float],
    n: int,
    seed: int,
    wild: bool,
    offset: int,
    in_place: bool,
) -> tuple[list[bool], list[np.ndarray]]:
    """What each step returned, and the bits of all vectors after each."""
    rng, finite, seen = np.random.default_rng(seed), [], []
    optimizer = make_shard_optimizer(name, n, **values)
    if wild:
        slots = {slot: draw(rng, n, wild) for slot in optimizer.slots()}
        optimizer.restore(slots, int(rng.integers(0, 100)))
    source = draw(rng, n, wild, offset)
    with pytest.MonkeyPatch.context() as patch:
        if implementation == "NumPy":
            patch.setattr(kernels, "LIBRARY", None)
        assert kernels.implementation() == implementation
        for _ in range(STEPS):
            target = source if in_place else draw(rng, n, wild, offset // 2)
            gradient = draw(rng, n, wild, offset // 3)
            finite.append(optimizer.step(source, target, gradient, rate=0.01))
            seen += [bits_of(v) for v in (source, target, gradient, *optimizer.slots().values())]
            source = target
    return finite, seen


@in_c
@each_kind
@settings(max_examples=150)
@given(
    n=st.integers(1, 70) | st.sampled_from([127, 128, 129, 1_000, 32_768, 32_769, 70_001]),
    seed=st.integers(0, 2**32),
    wild=st.booleans(),
    offset=st.integers(0, 15),
    in_place=st.booleans(),
)
@example(n=33, seed=0, wild=True, offset=1, in_place=True)
@example(n=33, seed=0, wild=False, offset=0, in_place=False)
def test_the_bits_of_numpy(
    name: str, values: dict[str, float], n: int, seed: int, wild: bool, offset: int, in_place: bool
) -> None:
    finite, ours = steps_of("C", name, values, n, seed, wild, offset, in_place)
    expected, theirs = steps_of("NumPy", name, values, n, seed, wild, offset, in_place)
    assert finite == expected
    for our, their in zip(ours, theirs):
        np.testing.assert_array_equal(our, their)


@in_c
@each_kind
@settings(max_examples=25)
@given(data=st.data(), bits=st.integers(0, 2**32 - 1))
def test_one_odd_number_among_good_ones(
    name: str, values: dict[str, float], data: st.DataObject, bits: int
) -> None:
    """In the vectors or in the rest: what is returned hangs on this one alone."""
    n = data.draw(st.integers(1, 70))
    odd, rng = np.array(bits, dtype=np.uint32).view(np.float32), np.random.default_rng(n)
    source, gradient = draw(rng, n, wild=False), draw(rng, n, wild=False)
    data.draw(st.sampled_from([source, gradient]))[data.draw(st.integers(0, n - 1))] = odd
    results = []
    for library in (kernels.LIBRARY, None):
        target, optimizer = np.empty(n, np.float32), make_shard_optimizer(name, n, **values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "LIBRARY", library)
            finite = optimizer.step(source, target, gradient, 0.01)
        assert finite is bool(np.isfinite(target).all())
        results.append(bits_of(target))
    np.testing.assert_array_equal(*results)


@in_c
@each_kind
def test_vectors_that_are_not_for_c(
    name: str, values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, library = 40, kernels.LIBRARY
    rng = np.random.default_rng(0)
    theta, d = draw(rng, n, wild=False), draw(rng, n, wild=False)
    monkeypatch.setattr(kernels, "LIBRARY", None)
    expected = np.empty(n, np.float32)
    make_shard_optimizer(name, n, **values).step(theta, expected, d, 0.1)
    monkeypatch.setattr(kernels, "LIBRARY", library)
    strided = [np.empty(3 * n, np.float32)[::3] for _ in range(3)]
    unaligned = [np.empty(4 * n + 1, np.uint8)[1:].view(np.float32) for _ in range(3)]
    for source, target, gradient in (strided, unaligned):
        for vectors in ((source, target, gradient), (theta, target, d), (source, theta.copy(), d)):
            vectors[0][:], vectors[2][:] = theta, d
            assert make_shard_optimizer(name, n, **values).step(*vectors, 0.1)
            np.testing.assert_array_equal(vectors[1], expected)
    fixed = np.zeros(n, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        make_shard_optimizer(name, n, **values).step(fixed, fixed, np.ones(n, np.float32), 0.1)
    assert not fixed.any()


@in_c
def test_a_library_that_does_not_fit_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert kernels._load() is not None
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    assert kernels._load() is None
    broken = tmp_path / "_kernels.so"
    broken.write_text("of another machine")
    for found in (None, ModuleSpec("_kernels", None, origin=str(broken))):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        assert kernels._load() is None


def test_a_compiler_has_built_the_kernels() -> None:
    """Otherwise a mistake in kernels.c or setup.py would only make servers slow."""
    found = importlib.util.find_spec("drl_mpi.updating._kernels")
    if found is None and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler here")
    advice = "install again: touch setup.py; make, or pip install -v -e . to see why not"
    assert kernels.implementation() == "C", f"there is a compiler, but no kernels; {advice}"
    assert found is not None
    assert found.origin is not None
    source = Path(kernels.__file__).with_name("kernels.c")
    if source.exists():  # not in a wheel
        built = Path(found.origin).stat().st_mtime
        assert built >= source.stat().st_mtime, f"kernels.c has changed; {advice}"
