"""What the compiler is given in another order is torch's own function, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma_bench.nets import digit_cnn
from trilemma_bench.nets._compiled import leaky_relu, modulated_group_norm, relu, silu


def value_and_gradients(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    inputs = [tensor.clone().requires_grad_() for tensor in given]
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), inputs)]


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As the compiler sees it, run by eager kernels: nothing is built."""
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("shape", [(24,), (3, 24)])
def test_group_norm_by_channels_is_group_norm(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 24, 5, 4, generator=rng) * 2 + 1
    weight, bias = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return modulated_group_norm(x, 6, weight, bias, eps=1e-6)

    def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = [F.group_norm(x[i : i + 1], 6, weight.expand(3, -1)[i], bias.expand(3, -1)[i], 1e-6) for i in range(3)]
        return torch.cat(rows)

    for function in (norm, compiled(norm)):
        for mine, theirs in zip(
            value_and_gradients(function, x, weight, bias), value_and_gradients(expected, x, weight, bias), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_group_norm_of_bfloat16_sums_in_float32_under_autocast() -> None:
    """The product with the matrix of groups would be of bfloat16 else."""
    x = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, bias = torch.ones(16), torch.zeros(16)
    norm = compiled(lambda x: modulated_group_norm(x, 4, weight, bias, eps=1e-6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    differ = found != F.group_norm(x.float(), 4, eps=1e-6).bfloat16()
    assert float(differ.float().mean()) < 1e-3  # a scale that is off by a thousandth moves a quarter of the values


def test_constant_images_stay_finite() -> None:
    """Their variance is rounded to about nothing, on either side of zero."""
    x = torch.full((2, 8, 4, 4), 3.3)
    weight, bias = torch.ones(8), torch.zeros(8)
    norm = compiled(lambda x: modulated_group_norm(x, 2, weight, bias, eps=1e-6))
    assert all(torch.isfinite(tensor).all() for tensor in value_and_gradients(norm, x))


def test_leaky_relu_is_leaky_relu() -> None:
    x = torch.cat([torch.linspace(-3, 3, 40), torch.tensor([1e-30, -1e-30, 1e4, -1e4])])
    for function in (lambda x: leaky_relu(x, 0.2), compiled(lambda x: leaky_relu(x, 0.2))):
        for mine, theirs in zip(
            value_and_gradients(function, x), value_and_gradients(lambda x: F.leaky_relu(x, 0.2), x), strict=True
        ):
            torch.testing.assert_close(mine, theirs, atol=0, rtol=1e-6)


@pytest.mark.parametrize(("mine", "torchs"), [(relu, F.relu), (silu, F.silu)])
def test_activations_are_torchs(mine: Callable[[Tensor], Tensor], torchs: Callable[[Tensor], Tensor]) -> None:
    """Far out too, where an exponential overflows."""
    x = torch.cat([torch.linspace(-6, 6, 40), torch.tensor([1e-30, -1e-30, 60, -60, 200, -200, 1e4, -1e4])])
    for function in (mine, compiled(mine)):
        for found, expected in zip(value_and_gradients(function, x), value_and_gradients(torchs, x), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-7, rtol=2e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at what the pooling returned
def test_a_classifier_written_for_the_compiler_is_the_same() -> None:
    torch.manual_seed(0)
    net, x = digit_cnn.build({}), torch.rand(3, 1, 28, 28) * 2 - 1
    expected = value_and_gradients(net, x)
    net.write_for_compiler()
    torch._dynamo.reset()
    written = torch.compile(net, backend="aot_eager")
    for mine, theirs in zip(value_and_gradients(written, x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
