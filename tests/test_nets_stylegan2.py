"""StyleGAN2: the authors' outputs, a literal float64 rendering of the formulas, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle_cases import OracleCase, load_oracle, oracle_names, stylegan2_weights
from torch import Tensor

from trilemma_bench.errors import ProtocolError, UsageError
from trilemma_bench.nets.stylegan2 import Discriminator, Generator, build_discriminator, build_generator

TOLERANCE = 1e-4  # absolute, tests/oracles/README.md
SMALL = {"z_dim": 8, "w_dim": 12, "channel_max": 8}


def _seeded(net: Any, seed: int) -> Any:
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict(stylegan2_weights(shapes, seed), strict=True)
    return net.eval()


def _generator(seed: int = 1, **config: Any) -> Generator:
    return _seeded(build_generator({**SMALL, **config}), seed)


def _discriminator(seed: int = 2, **config: Any) -> Discriminator:
    return _seeded(build_discriminator({"channel_max": 8, **config}), seed)


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _labels(n: int, c_dim: int) -> Tensor:
    return F.one_hot(torch.arange(n) % c_dim, c_dim).float() if c_dim else torch.zeros(n, 0)


# ---------------------------------------------------------------------------------- the authors' own outputs

ORACLES = oracle_names("stylegan2/*.npz")


@pytest.fixture(params=ORACLES or ["stylegan2/cond_tiny.npz"])
def case(request: pytest.FixtureRequest) -> OracleCase:
    return load_oracle(request.param)


@torch.no_grad()
def test_generator_computes_what_the_original_computes(case: OracleCase) -> None:
    generator = _seeded(build_generator(case.meta["config"]["G"]), case.meta["weight_seed_G"])
    z, c = case["z"], case["c"]
    noise = [case[f"noise_{i}"] for i in range(len(generator.synthesis.noise_shapes))]
    found = {
        "ws": generator.mapping(z, c),
        "img_const": generator(z, c, noise_mode="const"),
        "img_none": generator(z, c, noise_mode="none"),
        "img_const_psi0.7": generator(z, c, noise_mode="const", truncation_psi=0.7),
        "img_random": generator(z, c, noise_mode="random", noise=noise),
    }
    for name, value in found.items():
        assert (value - case[name]).abs().max() <= TOLERANCE, name


@torch.no_grad()
def test_discriminator_computes_what_the_original_computes(case: OracleCase) -> None:
    discriminator = _seeded(build_discriminator(case.meta["config"]["D"]), case.meta["weight_seed_D"])
    logits = discriminator(case["img_const"], case["c"])
    assert (logits - case["d_logits"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("part", ["G", "D"])
def test_state_dict_has_the_authors_keys_and_shapes_in_their_order(case: OracleCase, part: str) -> None:
    build = {"G": build_generator, "D": build_discriminator}[part]
    state = build(case.meta["config"][part]).state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == list(case.meta[f"keys_{part}"].items())


@pytest.mark.parametrize(
    ("build", "c_dim", "num_parameters", "num_tensors"),
    [
        (build_generator, 0, 19_947_539, 75),
        (build_generator, 10, 20_215_315, 77),
        (build_discriminator, 0, 20_720_641, 31),
        (build_discriminator, 10, 23_089_664, 49),
    ],
)
def test_cifar_networks_have_the_official_sizes(build: Any, c_dim: int, num_parameters: int, num_tensors: int) -> None:
    net = build({"c_dim": c_dim})
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters
    assert len(net.state_dict()) == num_tensors


# ------------------------------------------------------------- the formulas, spelt out slowly and in float64


def _fir(x: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int], gain: float = 1.0) -> Tensor:
    n, c, h, w = x.shape
    if up > 1:
        zeros = x.new_zeros(n, c, h * up, w * up)
        zeros[:, :, ::up, ::up] = x
        x = zeros
    taps = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 8
    kernel = (torch.outer(taps, taps) * gain).expand(c, 1, 4, 4)
    return F.conv2d(F.pad(x, (*pad, *pad)), kernel, groups=c)[:, :, ::down, ::down]


def _act(x: Tensor, clamp: float | None, gain: float = 1.0) -> Tensor:
    x = F.leaky_relu(x, 0.2) * math.sqrt(2) * gain
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def _fc(state: dict[str, Tensor], key: str, x: Tensor, lr: float = 1.0) -> Tensor:
    weight = state[f"{key}.weight"]
    return x @ (weight * lr / math.sqrt(weight.shape[1])).t() + state[f"{key}.bias"] * lr


def _normalised(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()


def _literal_mapping(state: dict[str, Tensor], z: Tensor | None, c: Tensor | None, num_layers: int) -> Tensor:
    parts = [] if z is None else [_normalised(z)]
    if c is not None:
        parts.append(_normalised(_fc(state, "mapping.embed", c)))
    w = torch.cat(parts, dim=1)
    for i in range(num_layers):
        w = _act(_fc(state, f"mapping.fc{i}", w, lr=0.01), None)
    return w


def _literal_styled(
    state: dict[str, Tensor],
    key: str,
    x: Tensor,
    w: Tensor,
    noise: Tensor,
    *,
    up: bool,
    clamp: float | None,
    gain: float = 1.0,
) -> Tensor:
    style = _fc(state, f"{key}.affine", w)
    out = []
    for i in range(len(x)):
        weight = state[f"{key}.weight"] * style[i][None, :, None, None]
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            y = F.conv2d(_fir(x[i : i + 1], up=2, pad=(3, 2), gain=4), weight.flip((2, 3)))
        else:
            y = F.conv2d(x[i : i + 1], weight, padding=1)
        out.append(y)
    noise = noise * state[f"{key}.noise_strength"]
    return _act(torch.cat(out) + noise + state[f"{key}.bias"][:, None, None], clamp, gain)


def _literal_torgb(state: dict[str, Tensor], key: str, x: Tensor, w: Tensor, *, clamp: float | None) -> Tensor:
    style = _fc(state, f"{key}.affine", w) / math.sqrt(x.shape[1])
    weights = [state[f"{key}.weight"] * s[None, :, None, None] for s in style]
    y = torch.cat([F.conv2d(x[i : i + 1], weight) for i, weight in enumerate(weights)])
    y = y + state[f"{key}.bias"][:, None, None]
    return y if clamp is None else y.clamp(-clamp, clamp)


def _literal_generator(generator: Generator, z: Tensor, c: Tensor, noise: list[Tensor]) -> Tensor:
    config, state = generator.config, {k: v.double() for k, v in generator.state_dict().items()}
    w = _literal_mapping(state, z.double(), c.double() if config.c_dim else None, config.mapping_layers)
    noises = iter(n.double() for n in noise)
    kw: Any = {"clamp": config.conv_clamp}
    x = state["synthesis.b4.const"].expand(len(z), -1, -1, -1)
    x = _literal_styled(state, "synthesis.b4.conv1", x, w, next(noises), up=False, **kw)
    img = None
    for resolution in config.resolutions:
        block = f"synthesis.b{resolution}"
        if resolution > 4:
            gain = math.sqrt(0.5) if config.architecture == "resnet" else 1.0
            y = _literal_styled(state, f"{block}.conv0", x, w, next(noises), up=True, **kw)
            y = _literal_styled(state, f"{block}.conv1", y, w, next(noises), up=False, gain=gain, **kw)
            if config.architecture == "resnet":
                weight = state[f"{block}.skip.weight"] / math.sqrt(x.shape[1])
                y = y + _fir(F.conv2d(x, weight), up=2, pad=(2, 1), gain=4) * gain
            x = y
        img = None if img is None else _fir(img, up=2, pad=(2, 1), gain=4)
        if config.architecture == "skip" or resolution == config.img_resolution:
            rgb = _literal_torgb(state, f"{block}.torgb", x, w, **kw)
            img = rgb if img is None else img + rgb
    assert img is not None
    return img


def _literal_conv(
    state: dict[str, Tensor],
    key: str,
    x: Tensor,
    *,
    clamp: float | None,
    down: bool = False,
    leaky: bool = True,
    gain: float = 1.0,
) -> Tensor:
    weight = state[f"{key}.weight"]
    size = weight.shape[-1]
    weight = weight / math.sqrt(weight[0].numel())
    if down and size == 1:
        x = F.conv2d(_fir(x, down=2, pad=(1, 1)), weight)
    elif down:
        x = F.conv2d(_fir(x, pad=(2, 2)), weight, stride=2)
    else:
        x = F.conv2d(x, weight, padding=size // 2)
    if not leaky:
        return x * gain
    return _act(x + state[f"{key}.bias"][:, None, None], clamp, gain)


def _literal_deviation(x: Tensor, group: int, num_channels: int) -> Tensor:
    n, channels = x.shape[:2]
    per, extra = channels // num_channels, x.new_zeros(n, num_channels, 4, 4)
    for i in range(n):
        members = x[i % (n // group) :: n // group]
        for f in range(num_channels):
            part = members[:, f * per : (f + 1) * per]
            extra[i, f] = (part.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat([x, extra], dim=1)


def _literal_discriminator(discriminator: Discriminator, img: Tensor, c: Tensor) -> Tensor:
    config, state = discriminator.config, {k: v.double() for k, v in discriminator.state_dict().items()}
    img, x = img.double(), None
    kw: Any = {"clamp": config.conv_clamp}
    for resolution in config.resolutions:
        block = f"b{resolution}"
        if x is None or config.architecture == "skip":
            rgb = _literal_conv(state, f"{block}.fromrgb", img, **kw)
            x = rgb if x is None else x + rgb
        gain = math.sqrt(0.5) if config.architecture == "resnet" else 1.0
        y = _literal_conv(state, f"{block}.conv0", x, **kw)
        y = _literal_conv(state, f"{block}.conv1", y, down=True, gain=gain, **kw)
        if config.architecture == "resnet":
            y = y + _literal_conv(state, f"{block}.skip", x, down=True, leaky=False, gain=gain, clamp=None)
        x = y
        if config.architecture == "skip":
            img = _fir(img, down=2, pad=(1, 1))
    assert x is not None
    if config.architecture == "skip":
        x = x + _literal_conv(state, "b4.fromrgb", img, clamp=None)
    if config.mbstd_num_channels:
        x = _literal_deviation(x, min(config.mbstd_group_size or len(x), len(x)), config.mbstd_num_channels)
    x = _literal_conv(state, "b4.conv", x, **kw)
    x = _fc(state, "b4.out", _act(_fc(state, "b4.fc", x.flatten(1)), None))
    if not config.c_dim:
        return x
    cmap = _literal_mapping(state, None, c.double(), config.mapping_layers)
    return (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(cmap.shape[1])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"img_resolution": 4, "img_channels": 1},
        {"img_resolution": 8, "conv_clamp": None, "mapping_layers": 8},
        {"img_resolution": 64, "channel_base": 256, "channel_max": 512, "c_dim": 3},
        {"img_resolution": 128, "channel_base": 256, "conv_clamp": 0.7},
        {"architecture": "orig", "img_resolution": 16},
        {"architecture": "resnet", "img_resolution": 16, "conv_clamp": 0.7, "c_dim": 2},
    ],
    ids=str,
)
@torch.no_grad()
def test_generator_equals_the_formulas_in_any_configuration(config: dict[str, Any]) -> None:
    generator = _generator(**config)
    z, c = _normal(3, 8), _labels(3, generator.config.c_dim)
    noise = [_normal(3, 1, *shape, seed=i) for i, shape in enumerate(generator.synthesis.noise_shapes)]
    expected = _literal_generator(generator, z, c, noise)
    assert generator.mapping(z, c).shape == (3, generator.synthesis.num_ws, 12)
    assert (generator(z, c, noise=noise) - expected).abs().max() < 2e-5


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"img_resolution": 8, "img_channels": 1, "conv_clamp": None, "mbstd_group_size": 2},
        {"img_resolution": 64, "channel_base": 256, "channel_max": 512, "c_dim": 3, "mbstd_group_size": 3},
        {"img_resolution": 16, "c_dim": 3, "cmap_dim": 5, "mapping_layers": 2, "mbstd_num_channels": 2},
        {"architecture": "resnet", "img_resolution": 16, "conv_clamp": 0.3, "mbstd_group_size": None},
        {"architecture": "skip", "img_resolution": 16, "conv_clamp": 0.3, "mbstd_num_channels": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_discriminator_equals_the_formulas_in_any_configuration(config: dict[str, Any]) -> None:
    discriminator = _discriminator(**config)
    size = discriminator.config.img_resolution
    img, c = _normal(6, discriminator.config.img_channels, size, size), _labels(6, discriminator.config.c_dim)
    expected = _literal_discriminator(discriminator, img, c)
    assert (discriminator(img, c) - expected).abs().max() < 2e-5


@torch.no_grad()
def test_full_size_cifar_networks_equal_the_formulas() -> None:
    generator, discriminator = _seeded(build_generator(), 3), _seeded(build_discriminator(), 4)
    z = _normal(2, 512)
    noise = [_normal(2, 1, *shape, seed=i) for i, shape in enumerate(generator.synthesis.noise_shapes)]
    img = generator(z, noise=noise)
    assert (img - _literal_generator(generator, z, _labels(2, 0), noise)).abs().max() < TOLERANCE
    assert (discriminator(img) - _literal_discriminator(discriminator, img, _labels(2, 0))).abs().max() < TOLERANCE


# ----------------------------------------------------------------------------------------------------- noise


def test_noise_shapes_are_one_for_the_first_block_and_two_for_each_other() -> None:
    shapes = _generator(img_resolution=16).synthesis.noise_shapes
    assert shapes == [(4, 4), (8, 8), (8, 8), (16, 16), (16, 16)]


@torch.no_grad()
def test_random_noise_is_what_the_given_generator_draws_in_layer_order() -> None:
    generator, z = _generator(), _normal(2, 8)
    rng = torch.Generator().manual_seed(5)
    noise = [torch.randn(2, 1, *shape, generator=rng) for shape in generator.synthesis.noise_shapes]
    drawn = generator(z, rng=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, generator(z, noise=noise))
    assert not torch.equal(drawn, generator(z, rng=torch.Generator().manual_seed(6)))


@torch.no_grad()
def test_an_image_depends_on_its_own_latent_and_noise_alone() -> None:
    generator, z = _generator(), _normal(5, 8)
    noise = [_normal(5, 1, *shape, seed=i) for i, shape in enumerate(generator.synthesis.noise_shapes)]
    together = generator(z, noise=noise)
    alone = generator(z[3:4], noise=[n[3:4] for n in noise])
    assert (together[3] - alone[0]).abs().max() < 1e-5


def test_noise_that_does_not_fit_is_refused() -> None:
    generator, z = _generator(), _normal(2, 8)
    noise = [_normal(2, 1, *shape) for shape in generator.synthesis.noise_shapes]
    with pytest.raises(ProtocolError, match="noise must have the shapes"):
        generator(z, noise=noise[:-1])
    with pytest.raises(ProtocolError, match="noise must have the shapes"):
        generator(z, noise=[n[:1] for n in noise])
    with pytest.raises(UsageError, match="noise goes with noise_mode 'random'"):
        generator(z, noise=noise, noise_mode="const")
    with pytest.raises(UsageError, match="no noise mode named 'constant'; did you mean 'const'"):
        generator(z, noise_mode="constant")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- mapping


@torch.no_grad()
def test_truncation_with_psi_zero_gives_the_mean_to_every_latent() -> None:
    generator = _generator()
    ws = generator.mapping(_normal(3, 8), truncation_psi=0.0)
    assert torch.equal(ws, generator.mapping.w_avg.expand_as(ws))


@torch.no_grad()
def test_w_avg_moves_only_when_asked_and_by_one_minus_beta() -> None:
    generator, z = _generator(), _normal(4, 8)
    before = generator.mapping.w_avg.clone()
    ws = generator.mapping(z)
    assert torch.equal(generator.mapping.w_avg, before)
    generator.mapping(z, update_w_avg_beta=0.75)
    expected = 0.75 * before + 0.25 * ws[:, 0].mean(dim=0)
    torch.testing.assert_close(generator.mapping.w_avg, expected, atol=1e-6, rtol=0)


def test_labels_must_go_with_a_conditional_network_and_only_with_one() -> None:
    z, img = _normal(2, 8), _normal(2, 3, 32, 32)
    empty = torch.zeros(2, 0)
    assert torch.equal(_generator().mapping(z, empty), _generator().mapping(z))
    assert torch.equal(_discriminator()(img, empty), _discriminator()(img))
    for call in (lambda c: _generator()(z, c), lambda c: _discriminator()(img, c)):
        with pytest.raises(UsageError, match="unconditional"):
            call(_labels(2, 10))
    for call in (lambda c: _generator(c_dim=10)(z, c), lambda c: _discriminator(c_dim=10)(img, c)):
        with pytest.raises(UsageError, match=r"needs one-hot labels \[N, 10\]"):
            call(None)
        for labels in (_labels(2, 9), _labels(1, 10), torch.tensor([3, 4])):
            with pytest.raises(ProtocolError, match=r"labels must be one-hot, \[2, 10\]"):
                call(labels)


def test_inputs_of_other_shapes_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"latents must be \[N, 8\]; got \[2, 9\]"):
        _generator()(_normal(2, 9))
    with pytest.raises(ProtocolError, match=r"ws must be \[N, 8, 12\]"):
        _generator().synthesis(_normal(2, 7, 12))
    with pytest.raises(ProtocolError, match=r"images must be \[N, 3, 32, 32\]; got \[2, 1, 32, 32\]"):
        _discriminator()(_normal(2, 1, 32, 32))


# -------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("build", [build_generator, build_discriminator])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chanel_max": 16}, "option named 'chanel_max'; did you mean 'channel_max'"),
        ({"architecture": "resnets"}, "architecture named 'resnets'; did you mean 'resnet'"),
        ({"img_resolution": 48}, "img_resolution must be a power of two"),
        ({"img_resolution": 2}, "img_resolution must be a power of two"),
        ({"img_channels": 0}, "img_channels must be a whole number of at least 1; got 0"),
        ({"channel_max": 16.0}, "channel_max must be a whole number"),
        ({"mapping_layers": True}, "mapping_layers must be a whole number"),
        ({"c_dim": -1}, "c_dim must be a whole number of at least 0"),
        ({"conv_clamp": 0}, "conv_clamp must be a positive number, or None; got 0"),
        ({"channel_base": 16}, "channel_base must be at least 32, the resolution; got 16"),
    ],
    ids=str,
)
def test_what_no_such_network_has_is_refused_by_name(build: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(config)


def test_discriminator_of_4x4_images_and_uneven_deviation_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 8; got 4"):
        build_discriminator({"img_resolution": 4})
    with pytest.raises(UsageError, match="mbstd_num_channels must divide the 8 channels at 4x4; got 3"):
        build_discriminator({"channel_max": 8, "mbstd_num_channels": 3})


def test_batch_that_its_groups_do_not_divide_is_refused() -> None:
    discriminator = _discriminator(mbstd_group_size=4)
    assert discriminator(_normal(3, 3, 32, 32)).shape == (3, 1)
    with pytest.raises(ProtocolError, match="multiple of its groups of 4; got 6 images"):
        discriminator(_normal(6, 3, 32, 32))


# -------------------------------------------------------------------------------------------------- training


def test_fresh_weights_follow_the_original_initialisation() -> None:
    torch.manual_seed(0)
    generator, discriminator = build_generator({"channel_max": 64}), build_discriminator({"channel_max": 64})
    for name, value in [*generator.named_parameters(), *discriminator.named_parameters()]:
        if name.endswith("affine.bias"):
            assert torch.all(value == 1), name
        elif name.endswith(("bias", "noise_strength")):
            assert torch.all(value == 0), name
        elif value.numel() > 1000:
            scale = 100 if name.startswith("mapping.fc") else 1
            assert value.std().item() / scale == pytest.approx(1, abs=0.1), name
    assert torch.all(generator.mapping.w_avg == 0)
    # Equalised learning rate keeps signals at unit scale through a fresh network.
    assert 0.2 < generator(_normal(8, 512), rng=torch.Generator().manual_seed(0)).std() < 5


def test_every_parameter_of_both_networks_receives_a_gradient() -> None:
    generator, discriminator = _generator(c_dim=3), _discriminator(c_dim=3)
    z, c = _normal(4, 8), _labels(4, 3)
    F.softplus(-discriminator(generator(z, c, rng=torch.Generator().manual_seed(1)), c)).mean().backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_r1_gradient_matches_finite_differences(architecture: str) -> None:
    discriminator = _discriminator(architecture=architecture, img_resolution=8, conv_clamp=None).double()
    img = _normal(2, 3, 8, 8, dtype=torch.float64)
    weight = dict(discriminator.named_parameters())["b8.conv1.weight"]

    def penalty() -> Tensor:
        x = img.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    (analytic,) = torch.autograd.grad(penalty(), weight)
    step = _normal(*weight.shape, seed=7, dtype=torch.float64) * 1e-5
    weight.data.add_(step)
    above = penalty().item()
    weight.data.sub_(2 * step)
    below = penalty().item()
    assert (above - below) / 2 == pytest.approx((analytic * step).sum().item(), rel=1e-4)


@torch.no_grad()
def test_bfloat16_autocast_stays_close_and_returns_float32() -> None:
    generator, discriminator = _generator(), _discriminator()
    z = _normal(4, 8)
    img = generator(z, noise_mode="const")
    logits = discriminator(img)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generator.mapping(z), generator.mapping(z).float())
        img_bf16 = generator(z, noise_mode="const")
        logits_bf16 = discriminator(img)
    assert img_bf16.dtype == logits_bf16.dtype == torch.float32
    assert (img_bf16 - img).abs().mean() < 0.02 * img.std()
    assert (logits_bf16 - logits).abs().max() < 0.05


@pytest.mark.parametrize("mode", ["const", "random"])
def test_networks_compile_without_a_graph_break(mode: str) -> None:
    generator, discriminator = _generator(img_resolution=8), _discriminator(img_resolution=8)
    z = _normal(2, 8)
    noise = [_normal(2, 1, *shape) for shape in generator.synthesis.noise_shapes] if mode == "random" else None
    # The `eager` backend traces only: what is tested is that one graph holds the whole network.
    compiled = torch.compile(generator, backend="eager", fullgraph=True)
    img = generator(z, noise_mode=mode, noise=noise).detach()
    torch.testing.assert_close(compiled(z, noise_mode=mode, noise=noise), img)
    compiled = torch.compile(discriminator, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(img), discriminator(img))
