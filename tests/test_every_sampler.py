"""What every sampler of the registry must keep, on tiny networks; a new one joins by a line in sampler_cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle_cases import ROOT
from sampler_cases import TINY, tiny, tiny_sampler
from torch import Tensor

from trilemma_bench import registry
from trilemma_bench.errors import UsageError
from trilemma_bench.kinds import POINTS_TOLERANCE, Sampler, SamplerKind, is_points
from trilemma_bench.samplers import _helpers
from trilemma_bench.samplers._helpers import _SameBitsInEveryPlace, untrained
from trilemma_bench.speed import EvaluationCounter, gflops_per_image
from trilemma_bench.store import image_seeds

NAMES = registry.names("sampler")
SEEDS = torch.from_numpy(image_seeds(3, 0, 7))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Three threads cut the batches of these tests inside of images and of vectors, two cut MKL's products unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest difference in grey levels (points: in coordinates), and the fraction of values that differ."""
    levels = np.abs(a.numpy().astype(np.float64) - b.numpy().astype(np.float64))
    return float(levels.max()), float((levels > 0).mean())


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_has_a_tiny_configuration(name: str) -> None:
    tiny(name)


def test_no_tiny_configuration_is_left_over() -> None:
    assert sorted(TINY) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_is_one_and_its_kind_says_what_it_is(name: str) -> None:
    kind: SamplerKind = registry.get("sampler", name)
    sampler = tiny_sampler(name)
    assert isinstance(sampler, Sampler)
    assert sampler.name == kind.name == name
    assert kind.source
    assert kind.family
    assert kind.tolerance[0] >= 1
    assert 0 < kind.tolerance[1] < 0.05
    with pytest.raises(ValueError, match="no_such_option"):
        kind.options(no_such_option=1)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_of_the_stated_type_and_shape_and_not_flat(name: str) -> None:
    sampler = tiny_sampler(name)
    images = sampler.sample(SEEDS)
    assert sampler.image_shape == tiny(name).image_shape
    assert images.dtype == tiny(name).dtype
    assert images.shape == (7, *sampler.image_shape)
    assert images.float().std() > 5 / sampler.scale
    assert images.is_contiguous()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_order_or_sharding(name: str, dtype: str, threads: int) -> None:
    sampler = tiny_sampler(name, dtype=dtype, micro_batch=5)
    images = sampler.sample(SEEDS)
    assert torch.equal(sampler.sample(SEEDS.flip(0)).flip(0), images)
    shards = [sampler.sample(SEEDS[:3]), sampler.sample(SEEDS[3:])]
    assert torch.equal(torch.cat(shards), images)
    assert torch.equal(sampler.sample(SEEDS[6:])[0], images[6])


@pytest.mark.parametrize("name", NAMES)
def test_a_place_in_the_batch_changes_no_bit(name: str, threads: int) -> None:
    """Before rounding to grey levels, which hides most of what a place could change."""
    sampler = tiny_sampler(name)
    assert torch.equal(sampler.floats(SEEDS).roll(1, 0), sampler.floats(SEEDS.roll(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(25, 16, 32, 32), (7, 48, 16, 16), (5, 10)])
def test_silu_and_group_normalisation_have_the_same_bits_in_every_place(
    shape: tuple[int, ...], number: int, dtype: torch.dtype
) -> None:
    """At sizes where torch's own have not: threads that do not divide the batch, rows beside whole vectors."""
    x = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        for function in (torch.nn.functional.silu, lambda x: torch.nn.functional.group_norm(x, 2)):
            with _SameBitsInEveryPlace():
                found, moved = function(x), function(x.roll(1, 0))
            assert torch.equal(found.roll(1, 0), moved)
            torch.testing.assert_close(found, function(x), atol=2e-6, rtol=1e-5 if dtype == torch.float32 else 0.01)
    finally:
        torch.set_num_threads(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One by one, over each row of x as five pixels."""
    return torch.nn.functional.conv1d(x[:, :, None].expand(-1, -1, 5), weight[:, :, None], bias)


def members(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Two affine maps, the second of the negative weight."""
    weights = torch.stack([weight.t(), -weight.t()])
    return torch.baddbmm(bias.expand(2, 1, -1), x.expand(2, -1, -1), weights).transpose(0, 1)


@pytest.mark.parametrize("layer", [linear, convolution, members])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("size", [(7, 5, 6), (5, 128, 256), (11, 96, 96), (16, 96, 96), (25, 64, 512)])
def test_linear_layers_have_the_same_bits_in_every_place_and_the_same_gradient(
    size: tuple[int, int, int], number: int, layer: Any
) -> None:
    """At sizes where MKL's have not on one processor or another."""
    rows, inputs, outputs = size
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=rng) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with _SameBitsInEveryPlace():
            found, moved = layer(x, weight, bias), layer(x.roll(1, 0), weight, bias)
            asked = x.clone().requires_grad_()
            with_gradient = layer(asked, weight, bias)
        assert torch.equal(found.roll(1, 0), moved)
        assert torch.equal(found, with_gradient)
        plain = x.clone().requires_grad_()
        expected = layer(plain, weight, bias)
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)
        for output in (with_gradient, expected):
            (output * torch.arange(output.numel()).view(output.shape).sin()).sum().backward()
        torch.testing.assert_close(asked.grad, plain.grad, atol=1e-4, rtol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 7, 6), (7, 6), (1, 1, 6)])
def test_a_batched_product_that_is_not_of_members_is_torchs(shape: tuple[int, ...]) -> None:
    """What is added, such as a mask of attention, may have a row for each of x, or be shared."""
    rng = torch.Generator().manual_seed(0)
    added, x, weight = (torch.randn(size, generator=rng) for size in (shape, (3, 7, 5), (3, 5, 6)))
    with _SameBitsInEveryPlace():
        found = torch.baddbmm(added, x, weight)
    assert torch.equal(found, torch.baddbmm(added, x, weight))


@pytest.mark.parametrize("name", NAMES)
def test_another_micro_batch_stays_within_the_tolerance(name: str) -> None:
    images = [tiny_sampler(name, micro_batch=size).sample(SEEDS) for size in (1, 7, 16)]
    for other in images[1:]:
        largest, fraction = distance(images[0], other)
        allowed = POINTS_TOLERANCE if is_points(tiny(name).image_shape) else registry.get("sampler", name).tolerance
        assert largest <= allowed[0]
        assert fraction <= allowed[1]


@pytest.mark.parametrize(("name", "baseline", "options"), [
    ("ddgan", "ddgan", {}),
    ("ddim", "ddpm", {"steps": 6, "eta": 1.0}),
    ("ddpm", "ddpm", {"steps": 6}),
    ("stylegan2", "stylegan2", {}),
])  # fmt: skip
def test_other_batches_and_threads_stay_within_half_the_tolerance(
    name: str, baseline: str, options: dict[str, Any]
) -> None:
    """The shipped weights, not tiny ones: the tolerance was measured with them."""
    kind: SamplerKind = registry.get("sampler", name)
    weights = kind.load(ROOT / "baselines" / baseline / "weights.safetensors")
    before, found = torch.get_num_threads(), []
    for micro_batch, number in ((10, 1), (4, 2), (1, 1)):
        torch.set_num_threads(number)
        found.append(kind.build(kind.options(**options), weights, micro_batch=micro_batch).sample(torch.arange(10)))
    torch.set_num_threads(before)
    for other in found[1:]:
        largest, fraction = distance(found[0], other)
        assert largest <= kind.tolerance[0] / 2
        assert fraction <= kind.tolerance[1] / 2


@pytest.mark.parametrize("name", NAMES)
def test_equal_weights_and_seeds_make_equal_images_and_identity_tells_weights_apart(name: str) -> None:
    sampler, again = tiny_sampler(name), tiny_sampler(name)
    assert torch.equal(sampler.sample(SEEDS[:2]), again.sample(SEEDS[:2]))
    assert sampler.identity == again.identity
    kind: SamplerKind = registry.get("sampler", name)
    others = [
        kind.build(kind.options(**tiny(name).options), untrained(tiny(name).config, seed), micro_batch=2)
        for seed in (0, 1)
    ]
    identities = {each.identity for each in (sampler, *others)}  # type: ignore[attr-defined]
    assert len(identities) == 3


@pytest.mark.parametrize("name", NAMES)
def test_untrained_weights_come_from_their_seed(name: str) -> None:
    kind: SamplerKind = registry.get("sampler", name)
    options = kind.options(**tiny(name).options)
    drawn = [
        kind.build(options, untrained(tiny(name).config, seed), micro_batch=2).networks  # type: ignore[attr-defined]
        for seed in (0, 0, 1)
    ]
    flat = [torch.cat([p.flatten() for net in nets.values() for p in net.parameters()]) for nets in drawn]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


@pytest.mark.parametrize("name", NAMES)
def test_different_seeds_make_different_images(name: str) -> None:
    """Neighbours, the same place of another run, and the largest seed that a run can have."""
    far = torch.from_numpy(np.concatenate([image_seeds(4, 0, 2), image_seeds(2**20 - 1, 2**31, 2**31 + 1)]))
    images = tiny_sampler(name).sample(torch.cat([SEEDS, far]))
    assert len({image.numpy().tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("name", NAMES)
def test_sampling_and_building_leave_the_global_generators_alone(name: str) -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    kind: SamplerKind = registry.get("sampler", name)
    kind.build(kind.options(**tiny(name).options), untrained(tiny(name).config), micro_batch=2)
    tiny_sampler(name).sample(SEEDS[:3])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_does_not_move_an_image(name: str) -> None:
    sampler = tiny_sampler(name)
    images = sampler.sample(SEEDS[:2])
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(sampler.sample(SEEDS[:2]), images)


@pytest.mark.parametrize("name", NAMES)
def test_counted_evaluations_are_those_of_the_formula(name: str) -> None:
    sampler = tiny_sampler(name)
    with EvaluationCounter(sampler.networks) as counter:
        sampler.sample(SEEDS[:4])
    assert counter.images / 4 == sampler.expected_nfe


@pytest.mark.parametrize("name", NAMES)
def test_linear_layers_count_the_same_whoever_computes_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = gflops_per_image(tiny_sampler(name), 3.0)
    monkeypatch.setattr(_helpers, "_is_onednns", lambda x: False)
    assert counted == gflops_per_image(tiny_sampler(name), 3.0)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near_and_not_the_same(name: str) -> None:
    images = tiny_sampler(name).sample(SEEDS).float()
    rough = tiny_sampler(name, dtype="bfloat16").sample(SEEDS)
    assert rough.dtype == tiny(name).dtype
    assert 0 < (rough.float() - images).abs().mean() < 20


@pytest.mark.parametrize("name", NAMES)
def test_no_seeds_make_no_images(name: str) -> None:
    sampler = tiny_sampler(name)
    images = sampler.sample(torch.empty(0, dtype=torch.int64))
    assert images.dtype == tiny(name).dtype
    assert images.shape == (0, *sampler.image_shape)


@pytest.mark.parametrize("seeds", [torch.arange(3.0), torch.arange(3, dtype=torch.int32), torch.zeros(1, 2).long()])
@pytest.mark.parametrize("name", NAMES)
def test_seeds_of_another_type_or_shape_are_refused(name: str, seeds: Any) -> None:
    with pytest.raises(UsageError, match=r"seeds must be int64 \[N\]; got"):
        tiny_sampler(name).sample(seeds)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_dtype_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no dtype named 'float8'"):
        tiny_sampler(name, dtype="float8")


@pytest.mark.parametrize("name", NAMES)
def test_sampled_networks_are_in_evaluation_mode_without_gradients(name: str) -> None:
    for network in tiny_sampler(name).networks.values():
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
