"""A shard's optimisers against slow float64 loops, torch.optim, and themselves cut into shards."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.updating import kernels, shard_optimizers
from drl_mpi.updating.shard_optimizers import make_shard_optimizer

BLOCK = 16  # so that small vectors have several blocks
N, STEPS = 2 * BLOCK + 3, 25
KINDS: list[tuple[str, dict[str, float]]] = [
    ("adagrad", {"eps": 1e-3, "initial_accumulator": 0.1}),
    ("rmsprop", {"decay": 0.9, "eps": 0.1}),
    ("rmsprop", {"decay": 0.9, "eps": 0.01, "momentum": 0.8}),
    ("centred-rmsprop", {"decay": 0.8, "eps": 0.01}),
    ("adam", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}),
]
each_kind = pytest.mark.parametrize(("name", "values"), KINDS)


@pytest.fixture(autouse=True, scope="module", params=["C", "NumPy"])
def _implementation(request: pytest.FixtureRequest):
    if request.param == "C" and kernels.LIBRARY is None:
        pytest.skip("kernels.c was not built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_optimizers, "BLOCK", BLOCK)
        if request.param == "NumPy":
            patch.setattr(kernels, "LIBRARY", None)
        yield


def gradients(n: int = N, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    scales = [10.0 ** (i % 5 - 3) for i in range(STEPS)]
    return [(rng.standard_normal(n) * scale).astype(np.float32) for scale in scales]


def start(n: int = N) -> np.ndarray:
    return np.linspace(-1.0, 1.0, n, dtype=np.float32)


def rate(step: int) -> float:
    return 1e-2 * (1.0 - step / STEPS)


def run(optimizer: Any, x: np.ndarray, given: list[np.ndarray], first: int = 0) -> np.ndarray:
    """In place; the result is another array."""
    x = x.copy()
    for step, gradient in enumerate(given, first):
        assert optimizer.step(x, x, gradient, rate(step)) is True
    return x


def slow(name: str, values: dict[str, float], theta: float, given: list[float]) -> float:
    """The formulas for one parameter, as in the papers."""
    g = values.get("initial_accumulator", 0.0)
    m = velocity = 0.0
    for step, d in enumerate(given):
        if name == "adagrad":
            g += d * d
            change = rate(step) * d / (math.sqrt(g) + values["eps"])
        elif name == "adam":
            b1, b2 = values["beta1"], values["beta2"]
            m, g = b1 * m + (1 - b1) * d, b2 * g + (1 - b2) * d * d
            unbiased = m / (1 - b1 ** (step + 1)), g / (1 - b2 ** (step + 1))
            change = rate(step) * unbiased[0] / (math.sqrt(unbiased[1]) + values["eps"])
        else:
            decay = values["decay"]
            g, m = decay * g + (1 - decay) * d * d, decay * m + (1 - decay) * d
            centre = m * m if name == "centred-rmsprop" else 0.0
            change = rate(step) * d / math.sqrt(g - centre + values["eps"])
        velocity = values.get("momentum", 0.0) * velocity + change
        theta -= velocity
    return theta


@each_kind
def test_the_papers_formulas(name: str, values: dict[str, float]) -> None:
    given = gradients()
    optimizer = make_shard_optimizer(name, N, **values)
    result = run(optimizer, start(), given)
    expected = [slow(name, values, float(x), [float(d[i]) for d in given])
                for i, x in enumerate(start())]  # fmt: skip
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-6)
    assert optimizer.steps == STEPS


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_torchs_formulas(name: str) -> None:
    values = dict(KINDS)[name]
    parameter = torch.nn.Parameter(torch.from_numpy(start()))
    theirs: torch.optim.Optimizer
    if name == "adam":
        theirs = torch.optim.Adam([parameter], lr=1.0, betas=(0.8, 0.95), eps=1e-3)
    else:
        theirs = torch.optim.Adagrad([parameter], eps=1e-3, initial_accumulator_value=0.1)
    for step, gradient in enumerate(gradients()):
        parameter.grad = torch.from_numpy(gradient)
        theirs.param_groups[0]["lr"] = rate(step)
        theirs.step()
    result = run(make_shard_optimizer(name, N, **values), start(), gradients())
    np.testing.assert_allclose(result, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


@each_kind
@settings(max_examples=25)
@given(n=st.integers(1, 4 * BLOCK), cut=st.integers(1, 4 * BLOCK), seed=st.integers(0, 9))
def test_shards_get_the_bits_of_the_whole(
    name: str, values: dict[str, float], n: int, cut: int, seed: int
) -> None:
    cut %= n
    given = gradients(n, seed)[:4]
    whole = make_shard_optimizer(name, n, **values)
    result = run(whole, start(n), given)
    for part in (slice(0, cut), slice(cut, n)):
        if part.start == part.stop:
            continue
        shard = make_shard_optimizer(name, part.stop - part.start, **values)
        ours = run(shard, start(n)[part], [gradient[part] for gradient in given])
        np.testing.assert_array_equal(ours, result[part])
        for slot, array in shard.slots().items():
            np.testing.assert_array_equal(array, whole.slots()[slot][part])


@each_kind
def test_the_size_of_blocks_changes_no_bit(
    name: str, values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, results = 40_000, []
    for block in (32_768, 1_000):
        monkeypatch.setattr(shard_optimizers, "BLOCK", block)
        optimizer = make_shard_optimizer(name, n, **values)
        results.append(run(optimizer, start(n), gradients(n)[:3]))
    np.testing.assert_array_equal(*results)


@each_kind
@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_another_target_gets_the_bits_and_leaves_the_source(
    name: str, values: dict[str, float], n: int
) -> None:
    optimizer = make_shard_optimizer(name, n, **values)
    x = start(n)
    for step, gradient in enumerate(gradients(n)):
        source, kept, target = x.copy(), gradient.copy(), np.full(n, 7.0, np.float32)
        source.flags.writeable = gradient.flags.writeable = False
        assert optimizer.step(source, target, gradient, rate(step))
        np.testing.assert_array_equal(source, x)
        np.testing.assert_array_equal(gradient, kept)
        x = target
    in_place = run(make_shard_optimizer(name, n, **values), start(n), gradients(n))
    np.testing.assert_array_equal(x, in_place)


@each_kind
@pytest.mark.parametrize("cut", [0, 11])
def test_a_restored_optimizer_goes_on_bit_for_bit(
    name: str, values: dict[str, float], cut: int
) -> None:
    straight = run(make_shard_optimizer(name, N, **values), start(), gradients())
    before = make_shard_optimizer(name, N, **values)
    middle = run(before, start(), gradients()[:cut])
    saved = {slot: array.copy() for slot, array in before.slots().items()}
    run(before, middle, gradients()[cut:], cut)  # must not reach what was saved

    after = make_shard_optimizer(name, N, **values)
    homes = {slot: array.ctypes.data for slot, array in after.slots().items()}
    after.restore(saved, cut)
    assert after.steps == cut
    for array in saved.values():
        assert array.shape == (N,)
        assert array.dtype == np.float32
    copies = {slot: array.copy() for slot, array in saved.items()}
    np.testing.assert_array_equal(run(after, middle, gradients()[cut:], cut), straight)
    assert after.steps == STEPS
    for slot, array in after.slots().items():
        np.testing.assert_array_equal(array, before.slots()[slot])
        np.testing.assert_array_equal(saved[slot], copies[slot])
        assert array.ctypes.data == homes[slot]


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, BLOCK, N - 1])
def test_what_is_not_finite_is_found(
    name: str, values: dict[str, float], bad: float, where: int
) -> None:
    optimizer = make_shard_optimizer(name, N, **values)
    gradient, target = gradients()[0], start()
    gradient[where] = bad
    assert optimizer.step(start(), target, gradient, 0.1) is False
    assert np.flatnonzero(~np.isfinite(target)).tolist() == [where]

    optimizer = make_shard_optimizer(name, N, **values)
    source = start()
    source[where] = bad
    still = np.zeros(N, np.float32)  # its slots are zero: infinity x 0 must be found, too
    assert optimizer.step(source, target, still, 0.1) is False
    assert np.flatnonzero(~np.isfinite(target)).tolist() == [where]


@each_kind
def test_a_slot_that_overflows_is_found(name: str, values: dict[str, float]) -> None:
    """An infinite mean square would hold its parameter still for ever, and finite."""
    gradient, x = gradients()[0], start()
    gradient[BLOCK + 2] = 1e30
    assert make_shard_optimizer(name, N, **values).step(x, x, gradient, 0.1) is False
    assert np.flatnonzero(~np.isfinite(x)).tolist() == [BLOCK + 2]


@each_kind
def test_large_numbers_are_no_false_alarm(name: str, values: dict[str, float]) -> None:
    optimizer = make_shard_optimizer(name, N, **values)
    source, target = np.full(N, 1e38, np.float32), np.empty(N, np.float32)
    gradient = np.full(N, 1e17, np.float32)  # the dot product of the check overflows
    with np.errstate(over="ignore"):
        assert not math.isfinite(np.dot(source, source))
    assert optimizer.step(source, target, gradient, 0.1) is True
    np.testing.assert_array_equal(target, source)
    gradient[0] = math.nan  # nor do they hide what another block found
    assert optimizer.step(source, target, gradient, 0.1) is False


def test_a_steady_gradient_has_no_variance() -> None:
    """g - m^2 is all rounding here, some of it far below -eps; the truth is 0."""
    optimizer = make_shard_optimizer("centred-rmsprop", N, decay=0.5, eps=1e-6)
    gradient = np.random.default_rng(0).uniform(90.0, 110.0, N).astype(np.float32)
    x = np.zeros(N, np.float32)
    for _ in range(60):
        assert optimizer.step(x, x, gradient, 1e-6)
    slots = {slot: array.astype(np.float64) for slot, array in optimizer.slots().items()}
    variance = slots["mean_square"] - slots["mean_gradient"] ** 2
    assert variance.min() < -1e-5  # else this test tests nothing
    assert np.isfinite(x).all()


def test_zero_gradients_change_nothing_and_a_rate_of_zero_only_slots() -> None:
    for name, values in KINDS:
        optimizer = make_shard_optimizer(name, N, **values)
        x = run(optimizer, start(), [np.zeros(N, np.float32)] * 3)
        np.testing.assert_array_equal(x, start())
        assert optimizer.step(x, x, gradients()[3], 0.0)
        np.testing.assert_array_equal(x, start())
        assert all(array.any() for slot, array in optimizer.slots().items() if slot != "velocity")


def test_slots_by_name() -> None:
    named = {name: set(make_shard_optimizer(name, 3).slots()) for name, _ in KINDS}
    assert named == {
        "adagrad": {"sum_of_squares"},
        "rmsprop": {"mean_square"},
        "centred-rmsprop": {"mean_square", "mean_gradient"},
        "adam": {"mean", "mean_square"},
    }
    assert "velocity" in make_shard_optimizer("rmsprop", 3, momentum=0.9).slots()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("sgd", {}, "'sgd', allowed: adagrad, rmsprop, centred-rmsprop, adam"),
        ("rmsprop", {"beta1": 0.9}, "beta1"),
        ("rmsprop", {"decay": 1.0}, "decay is 1"),
        ("rmsprop", {"decay": 1.0 - 1e-9}, "below 1 in float32"),
        ("rmsprop", {"momentum": -0.1}, "momentum is -0.1"),
        ("adagrad", {"eps": 0.0}, "eps is 0"),
        ("adagrad", {"eps": 1e-46}, "eps is 1e-46"),  # 0 in float32
        ("adagrad", {"initial_accumulator": math.inf}, "initial_accumulator is inf"),
        ("centred-rmsprop", {"eps": math.nan}, "eps is nan"),
        ("adam", {"beta2": 1.5}, "beta2 is 1.5"),
    ],
)
def test_settings_that_cannot_work(name: str, values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_shard_optimizer(name, N, **values)


def test_vectors_and_slots_of_something_else() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        make_shard_optimizer("adam", 0)
    optimizer = make_shard_optimizer("adam", N)
    x, short, wide = start(), start(N - 1), np.zeros(N)
    for vectors in ((short, x, x), (x, short, x), (x, x, short), (x, x, wide), (x, wide, x)):
        with pytest.raises(ValueError, match="allowed: float32"):
            optimizer.step(*vectors, 0.1)
    good = {"mean": x, "mean_square": x}
    for slots in ({}, {"mean": x}, good | {"velocity": x}, {"sum_of_squares": x}):
        with pytest.raises(ValueError, match="another optimiser"):
            optimizer.restore(slots, 3)
    for slot in (short, wide):
        with pytest.raises(ValueError, match="slot mean_square is"):
            optimizer.restore({"mean": x, "mean_square": slot}, 3)
    with pytest.raises(ValueError, match="steps is -1"):
        optimizer.restore(good, -1)
    assert optimizer.steps == 0
    assert not any(array.any() for array in optimizer.slots().values())


def test_a_server_loads_no_torch() -> None:
    modules = "drl_mpi.updating.shard_optimizers, drl_mpi.updating.outliers"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
