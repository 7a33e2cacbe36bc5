"""Networks: shapes, dtypes, recurrence, scaling, precision, seeds, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drl_mpi.nets import (
    FlatParameters,
    Network,
    PolicyValue,
    QValues,
    default_net,
    inference_copy,
    keep_freed_memory,
    load_flat,
    make,
)
from drl_mpi.nets.torsos import halve

T, B, A = 3, 2, 5
SHAPES = {"shallow": (4, 84, 84), "nature": (4, 84, 84), "deep": (4, 44, 43), "mlp": (7,)}
HEADS = ("policy_value", "q", "dueling")


def observations(name: str, *, rows: int = T) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (rows, B, *SHAPES[name])
    if name == "mlp":
        return torch.randn(shape, generator=generator)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def no_starts(rows: int = T) -> Tensor:
    return torch.zeros(rows, B, dtype=torch.bool)


def flat_output(net: Network, x: Tensor, first: Tensor | None = None) -> Tensor:
    output, _ = net(x, no_starts(x.shape[0]) if first is None else first, None)
    return torch.cat([part.flatten() for part in output])


@pytest.mark.parametrize(
    ("name", "head", "core"), list(itertools.product(SHAPES, HEADS, (None, "lstm")))
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shapes_and_dtypes(name: str, head: str, core: str | None, precision: str) -> None:
    net = make(name, SHAPES[name], A, head=head, core=core, seed=0)
    net.precision = precision
    state = net.initial_state(B)
    assert net.state_shape == (() if core is None else (2, 256))
    output, after = net(observations(name), no_starts(), state)
    if head == "policy_value":
        assert isinstance(output, PolicyValue)
        assert output.logits.shape == (T, B, A)
        assert output.value.shape == (T, B)
    else:
        assert isinstance(output, QValues)
        assert output.q.shape == (T, B, A)
    assert all(part.dtype == torch.float32 for part in output)
    if core is None:
        assert state is None
        assert after is None
    else:
        assert after.shape == (2, B, 256)
        assert after.dtype == torch.float32
    torch.autograd.backward([part.sum() for part in output])
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_lstm_unroll_equals_single_steps_with_resets() -> None:
    rows = 6
    net = make("mlp", (7,), A, core="lstm", seed=0)
    x = torch.randn(rows, B, 7)
    first = no_starts(rows)
    first[0, 1] = first[3, 0] = first[4] = True
    start = torch.randn(2, B, 256)
    unrolled, end = net(x, first, start)

    state, values = start.clone(), []
    for t in range(rows):
        state = torch.stack([state[:, b] * (not first[t, b]) for b in range(B)], dim=1)
        output, state = net(x[t : t + 1], no_starts(1), state)
        values.append(output.value)
    torch.testing.assert_close(unrolled.value, torch.cat(values), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(end, state, rtol=1e-5, atol=1e-6)
    # what came before a start does not matter, what came before no start does
    other, _ = net(x, first, start + 1.0)
    assert torch.equal(other.value[0, 1], unrolled.value[0, 1])
    assert not torch.equal(other.value[0, 0], unrolled.value[0, 0])
    assert torch.equal(other.value[4:], unrolled.value[4:])


@pytest.mark.parametrize("name", ["shallow", "nature", "deep"])
def test_bytes_are_read_as_fractions_of_255(name: str) -> None:
    net = make(name, SHAPES[name], A, head="q", seed=0)
    x = observations(name)
    torch.testing.assert_close(
        flat_output(net, x), flat_output(net, x.float() / 255.0), rtol=1e-4, atol=1e-5
    )


def test_bytes_in_a_vector_are_scaled_too() -> None:
    net = make("mlp", (128,), A, head="q", seed=0)
    x = torch.randint(0, 256, (T, B, 128), dtype=torch.uint8)
    torch.testing.assert_close(flat_output(net, x), flat_output(net, x.float() / 255.0))


def test_shallow_equals_a_plain_torch_network() -> None:
    net = make("shallow", (4, 84, 84), A, seed=0)
    p = dict(net.named_parameters())
    x = observations("shallow").flatten(0, 1)
    y = F.relu(F.conv2d(x / 255.0, p["torso.convs.0.weight"], stride=4))
    y = F.relu(F.conv2d(y, p["torso.convs.1.weight"], stride=2))
    fc = p["torso.fc.weight"].view(256, 9, 9, 32).permute(0, 3, 1, 2).flatten(1)  # H, W, C order
    y = F.relu(F.linear(y.flatten(1), fc))
    output, _ = net(observations("shallow"), no_starts(), None)
    expected = F.linear(y, p["head.value.weight"]).view(T, B)
    torch.testing.assert_close(output.value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shallow", "nature", "deep"])
def test_channels_last_observations_are_not_copied_and_mean_the_same(name: str) -> None:
    net = make(name, SHAPES[name], A, seed=0)
    x = observations(name)
    strided = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    rows = strided.flatten(0, 1)
    assert rows.data_ptr() == strided.data_ptr()
    assert rows.contiguous(memory_format=torch.channels_last).data_ptr() == strided.data_ptr()
    torch.testing.assert_close(flat_output(net, x), flat_output(net, strided))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("core", [None, "lstm"])
def test_bf16_is_close_and_its_acting_copy_is_the_same(name: str, core: str | None) -> None:
    net = make(name, SHAPES[name], A, head="q", core=core, seed=0)
    x = observations(name)
    exact = flat_output(net, x).detach()
    net.precision = "bf16"
    rough = flat_output(net, x)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(
        rough.detach(), exact, rtol=0.0, atol=0.02 * float(exact.abs().max() + 1)
    )

    acting = inference_copy(net)
    other = make(name, SHAPES[name], A, head="q", core=core, seed=1)
    vector = FlatParameters(other).vector
    load_flat(acting, vector)
    other.precision = "bf16"
    with torch.no_grad():  # also with gradients: same arithmetic but for the max-pool's way
        torch.testing.assert_close(
            flat_output(acting, x), flat_output(other, x), rtol=1e-4, atol=1e-5
        )


def test_only_the_body_of_an_acting_copy_is_bf16() -> None:
    net = make("shallow", (4, 84, 84), A, core="lstm", seed=0)
    dtypes = {n: p.dtype for n, p in inference_copy(net, "bf16").named_parameters()}
    assert {n for n, d in dtypes.items() if d == torch.bfloat16} == {
        f"torso.{layer}.{kind}" for layer in ("convs.1", "fc") for kind in ("weight", "bias")
    }
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert not any(p.requires_grad for p in inference_copy(net).parameters())


def test_heads_compute_in_fp32() -> None:
    """A value of 1 + 1/1024 must not be rounded to bf16's neighbours 1 and 1 + 1/128."""
    net = make("shallow", (4, 84, 84), A, seed=0)
    net.precision = "bf16"
    with torch.no_grad():
        net.get_parameter("head.value.weight").zero_()
        net.get_parameter("head.value.bias").fill_(1.0 + 1.0 / 1024.0)
        output, _ = net(observations("shallow"), no_starts(), None)
    assert torch.equal(output.value, torch.full((T, B), 1.0 + 1.0 / 1024.0))


def test_dueling_advantages_have_mean_zero() -> None:
    net = make("mlp", (7,), A, head="dueling", seed=0)
    with torch.no_grad():
        before, _ = net(observations("mlp"), no_starts(), None)
        net.get_parameter("head.advantage.bias").add_(3.0)
        after, _ = net(observations("mlp"), no_starts(), None)
        net.get_parameter("head.value.weight").zero_()
        no_value, _ = net(observations("mlp"), no_starts(), None)
    torch.testing.assert_close(after.q, before.q)
    torch.testing.assert_close(no_value.q.mean(-1), torch.zeros(T, B), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (4, 7), (21, 21), (84, 42)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_halve_is_max_pooling(size: tuple[int, int], layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    assert torch.equal(halve(x), F.max_pool2d(x, 3, stride=2, padding=1))


def test_seeds() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    nets = [make("nature", (4, 84, 84), A, core="lstm", seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (FlatParameters(net).vector for net in nets)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    first, second = (FlatParameters(make("mlp", (7,), A)).vector for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(FlatParameters(make("mlp", (7,), A)).vector, first)
    assert not torch.equal(first, second)


def test_initial_weights() -> None:
    net = make("nature", (4, 84, 84), A, seed=0)
    p = {n: q.detach() for n, q in net.named_parameters()}
    assert all(not q.any() for n, q in p.items() if n.endswith("bias"))
    for name, gain in (("torso.fc", 2**0.5), ("head.policy", 0.01), ("head.value", 1.0)):
        weight = p[f"{name}.weight"]
        gram = (weight @ weight.T).numpy()
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-4 * gain**2)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("huge", (7,), A), {}, ["'huge'", "shallow, nature, deep, mlp"]),
        (("mlp", (7,), A), {"head": "v"}, ["'v'", "policy_value, q, dueling"]),
        (("mlp", (7,), A), {"core": "gru"}, ["'gru'", "None, lstm"]),
        (("mlp", (7,), 0), {}, ["num_actions is 0", "1 or more"]),
        (("mlp", (4, 84, 84), A), {}, ["(4, 84, 84)", "(values,)", "use net 'shallow'"]),
        (("nature", (7,), A), {}, ["(7,)", "(channels, height, width)", "use net 'mlp'"]),
        (("nature", (4, 35, 84), A), {}, ["(4, 35, 84)", "36x36", "use net 'shallow'"]),
        (("shallow", (84, 84, 4), A), {}, ["20x20", "use net 'deep'", "channels first"]),
        (("mlp", (3, 3), A), {}, ["(3, 3)", "flatten"]),
        (("mlp", (0,), A), {}, ["(0,)", "1 or more"]),
    ],
)
def test_refusals(arguments: tuple, options: dict, words: list[str]) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        make(*arguments, **options)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_refuses_an_unknown_precision() -> None:
    net = make("mlp", (7,), A)
    with pytest.raises(ValueError, match="fp32, bf16"):
        net.precision = "fp16"


@pytest.mark.parametrize(
    ("shape", "name"),
    [((7,), "mlp"), ((4, 84, 84), "shallow"), ((1, 20, 20), "shallow"), ((3, 7, 7), "deep")],
)
def test_default_net_fits(shape: tuple[int, ...], name: str) -> None:
    assert default_net(shape) == name
    make(name, shape, A)(torch.zeros(1, 1, *shape), no_starts(1)[:, :1], None)


@pytest.mark.parametrize(("name", "least"), [("shallow", 20), ("nature", 36), ("deep", 1)])
def test_smallest_images(name: str, least: int) -> None:
    flat_output(make(name, (1, least, least), A), torch.zeros(1, B, 1, least, least))


def test_keep_freed_memory_is_harmless() -> None:
    assert keep_freed_memory() in (True, False)
