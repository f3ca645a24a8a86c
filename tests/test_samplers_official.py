"""Official weights: other programs' files load to the same network, and hostile files are refused by name."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import official_files as files
import pytest
import torch
from oracle_cases import load_oracle, oracle_names, stylegan2_weights
from sampler_cases import TINY_STYLEGAN2

from trilemma_bench.errors import WeightsError
from trilemma_bench.kinds import Weights
from trilemma_bench.nets.stylegan2 import build_generator
from trilemma_bench.samplers import ddgan, ddim, ddpm, stylegan2

PROTOCOLS = (2, 3, 4, 5)


# --- DDPM: pytorch_diffusion and pytorch-ddpm


def predicted(weights: Weights, x: torch.Tensor, step: int) -> torch.Tensor:
    sampler = ddim.build(ddim.Options(steps=2), weights, micro_batch=1)
    with torch.no_grad():
        return sampler.predict_noise(x, step)


@pytest.mark.parametrize("step", [0, 7, 39])
@pytest.mark.parametrize("program", ["pesser", "pytorch_ddpm"])
def test_another_programs_network_predicts_the_same_noise(program: str, step: int, tmp_path: Path) -> None:
    tensors = getattr(files, f"{program}_tensors")()
    content = tensors if program == "pesser" else {"net_model": {"a": torch.zeros(1)}, "ema_model": tensors, "step": 3}
    torch.save(content, tmp_path / "model-790000.ckpt")
    weights = ddpm.load(tmp_path / "model-790000.ckpt")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    expected = getattr(files, f"{program}_eps")(tensors, x, step)
    assert expected.std() > 0.1
    torch.testing.assert_close(predicted(weights, x, step), expected, atol=2e-5, rtol=1e-4)
    assert weights.config["num_train_steps"] == (1000 if program == "pesser" else 40)


def test_the_true_widths_are_those_of_the_public_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes alone: 35,746,307 parameters under the configuration of google/ddpm-cifar10-32."""
    from trilemma_bench.nets import _unet_keys, unet

    monkeypatch.setattr(files, "WIDTH", 128)
    monkeypatch.setattr(files, "random_tensors", lambda shapes: {k: torch.empty(v, device="meta")
                                                                 for k, v in shapes.items()})  # fmt: skip
    found = _unet_keys.from_other_program(files.pesser_tensors(), "x")
    assert found is not None
    config, tensors = found
    assert config == unet.CIFAR10_PAPER
    assert sum(tensor.numel() for tensor in tensors.values()) == 35_746_307


def test_the_averaged_weights_of_a_checkpoint_are_taken(tmp_path: Path) -> None:
    tensors = files.pytorch_ddpm_tensors()
    raw = {key: tensor if "timembedding.0" in key else tensor + 1 for key, tensor in tensors.items()}
    torch.save({"net_model": raw, "ema_model": tensors, "x_T": torch.zeros(2)}, tmp_path / "ckpt.pt")
    torch.save(tensors, tmp_path / "alone.pt")
    assert ddpm.load(tmp_path / "ckpt.pt").digest == ddpm.load(tmp_path / "alone.pt").digest


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t | {"down.0.block.0.extra.weight": torch.zeros(1)}, "'down.0.block.0.extra.weight' has no place"),
    (lambda t: {k: v for k, v in t.items() if not k.startswith("conv_in")}, "'conv_in.weight' fails"),
    (lambda t: t | {"down.0.block.0.conv2.weight": torch.zeros(48, 32, 3, 3)}, "levels of .*multiples"),
    (lambda t: t | {"mid.block_1.conv1.weight": torch.zeros(1, 1, 3, 3)}, "not the weights of this network"),
])  # fmt: skip
def test_a_ckpt_of_another_network_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    torch.save(change(files.pesser_tensors()), tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match=message):
        ddpm.build(ddpm.Options(), ddpm.load(tmp_path / "model.ckpt"))


def test_another_time_embedding_than_the_sinusoidal_one_is_refused(tmp_path: Path) -> None:
    tensors = files.pytorch_ddpm_tensors()
    tensors["time_embedding.timembedding.0.weight"] += 0.1
    torch.save({"ema_model": tensors}, tmp_path / "ckpt.pt")
    with pytest.raises(WeightsError, match="table of time embeddings is not the sinusoidal one"):
        ddpm.load(tmp_path / "ckpt.pt")


# --- StyleGAN2-ADA pickles


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    files.fake_programs(monkeypatch)


@pytest.fixture
def generator() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return build_generator(TINY_STYLEGAN2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_an_official_pickle_loads_without_running_its_source(c_dim: int, protocol: int, tmp_path: Path) -> None:
    network = build_generator({**TINY_STYLEGAN2, "c_dim": c_dim})
    path = files.write(tmp_path / "cifar10.pkl", files.stylegan2_pickle(network, protocol))
    weights = stylegan2.load(path)
    assert weights.tensors is not None
    state = network.state_dict()
    assert weights.tensors.keys() == state.keys()
    assert all(torch.equal(weights.tensors[key], value) for key, value in state.items())
    sampler = stylegan2.build(stylegan2.Options(), weights, micro_batch=2)
    assert sampler._settings.c_dim == c_dim
    z, c = torch.randn(2, 8), torch.eye(3)[:2] if c_dim else None
    with torch.no_grad():
        mine = sampler.networks["G"](z, c, noise_mode="const")
        torch.testing.assert_close(mine, network(z, c, noise_mode="const"))


@pytest.mark.parametrize("name", oracle_names("stylegan2/*.npz"))
def test_the_authors_images_come_out_of_a_pickle(name: str, tmp_path: Path) -> None:
    case = load_oracle(name)
    network = build_generator(case.meta["config"]["G"])
    network.load_state_dict(stylegan2_weights(case.meta["keys_G"], case.meta["weight_seed_G"]))
    path = files.write(tmp_path / "net.pkl", files.stylegan2_pickle(network, 4))
    sampler = stylegan2.build(stylegan2.Options(), stylegan2.load(path), micro_batch=2)
    c = case["c"] if case["c"].shape[1] else None
    with torch.no_grad():
        images = sampler.networks["G"](case["z"], c, noise_mode="const")
    torch.testing.assert_close(images, case["img_const"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [
    {}, {"channel_base": 16384}, {"channel_base": 32768 * 2, "img_resolution": 128}, {"conv_clamp": None},
    {"img_resolution": 64, "mapping_layers": 8, "channel_base": 1000, "channel_max": 100}, {"architecture": "resnet"},
])  # fmt: skip
def test_a_configuration_read_off_the_file_is_the_generators(config: dict[str, Any]) -> None:
    from trilemma_bench.samplers import _persistence

    config = {"img_resolution": 32, "channel_max": 512, **config}
    with torch.device("meta"):
        network = build_generator(config)
    tensors = network.state_dict()
    node = _persistence.Node(_stand_in(network))
    found = build_on_meta(_persistence.generator_config(node, tensors, "x"))
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in tensors.items()}
    assert (found.config.conv_clamp, found.config.architecture) == (
        network.config.conv_clamp,
        network.config.architecture,
    )


def build_on_meta(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return build_generator(config)


def _stand_in(network: Any) -> dict[str, Any]:
    """The nodes that `generator_config` looks at."""
    from trilemma_bench.samplers._persistence import Node

    node = lambda **state: Node({"class_name": "x", "state": state})  # noqa: E731
    config = network.config
    block = node(architecture=config.architecture, _modules={"conv1": node(conv_clamp=config.conv_clamp)})
    modules = {"mapping": node(_modules={"fc0": node()}), "synthesis": node(_modules={"b4": block})}
    names = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
    return {"class_name": "Generator", "state": {"_modules": modules, **{n: getattr(config, n) for n in names}}}


# --- hostile files: each is refused by name, and runs nothing


class Runs:
    """Touches a file where it is unpickled in earnest."""

    target: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Runs.target),)


def inner_file(content: Any) -> Any:
    """What torch's rebuild functions are given, holding anything."""

    class Inner:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (content,)

    return Inner()


def tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    return Rebuilt()


def storage_bytes(numel: int = 1) -> bytes:
    """A storage of one float in torch's older format that claims to have `numel`."""
    stream = files.io.BytesIO()
    typed = torch.storage.TypedStorage(wrap_storage=torch.zeros(1).untyped_storage(), dtype=torch.float32,
                                       _internal=True)  # fmt: skip
    torch.save(typed, stream, _use_new_zipfile_serialization=False)
    data = stream.getvalue()
    claim = b"\x8a" + struct.pack("B", 6) + numel.to_bytes(6, "little") if numel > 1 else b"K\x01"
    return data.replace(b"cpuq\x03K\x01", b"cpuq\x03" + claim)


def doubled(levels: int = 30) -> Any:
    """Each level holds the one below twice: a walk over it would have 2^30 steps."""
    network = files.Persistent("Generator", {"_modules": {}})
    for _ in range(levels):
        network = files.Persistent("Generator", {"_modules": {"a": network, "b": network}})
    return network


def long_text() -> bytes:
    """A pickle that encodes one long text again and again."""
    text = b"X" + struct.pack("<I", 5000) + b"a" * 5000 + b"q\x010"
    call = b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02" + text + b"](" + call * 200 + b"e."


HOSTILE: dict[str, tuple[Any, str]] = {
    "a command": (lambda: Runs(), r"asks for (posix|nt)\.mkdir"),
    "a command inside a network": (lambda: files.Persistent("Generator", {"x": Runs()}), r"asks for (posix|nt)\.mkdir"),
    "eval by name": (lambda: GlobalOf("builtins", "eval", "1"), r"asks for (__builtin__|builtins)\.eval"),
    "getattr": (lambda: GlobalOf("builtins", "getattr", "x", "y"), r"asks for (__builtin__|builtins)\.getattr"),
    "torch.load": (lambda: GlobalOf("torch", "load", "x"), r"asks for torch\.(serialization\.)?load"),
    "a nested command": (lambda: inner_file(pickle.dumps(Runs())), "inner file that is not a storage"),
    "a nested zip": (lambda: inner_file(b"PK\x03\x04"), "an inner file is a zip"),
    "a nested file that is no bytes": (lambda: inner_file("x"), "inner file that is not bytes"),
    "a storage larger than its bytes": (lambda: inner_file(storage_bytes(2**40)), "inner file that is not a storage"),
    "a tensor of stride 0": (
        lambda: tensor(inner_file(storage_bytes()), 0, (2**20, 2**20), (0, 0)), r"in a storage of 1 numbers"),
    "a tensor beyond its storage": (
        lambda: tensor(inner_file(storage_bytes()), 5, (1,), (1,)), r"in a storage of 1 numbers"),
    "a negative offset": (lambda: tensor(inner_file(storage_bytes()), -1, (1,), (1,)), "whose shape is not one"),
    "a tensor without a storage": (lambda: tensor("x", 0, (1,), (1,)), "without a storage"),
    "a network that holds a part twice": (doubled, "holds a part twice"),
}  # fmt: skip


class GlobalOf:
    """Asks for any name and calls it."""

    def __init__(self, module: str, name: str, *args: Any) -> None:
        self.module, self.name, self.args = module, name, args

    def __reduce__(self) -> tuple[Any, ...]:
        import importlib

        return getattr(importlib.import_module(self.module), self.name), self.args


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(what: str, protocol: int, tmp_path: Path) -> None:
    Runs.target = tmp_path / "ran"
    content, message = HOSTILE[what]
    data = files.dump({"G_ema": content(), "G": files.Persistent("x", {})}, protocol)
    path = files.write(tmp_path / "evil.pkl", data)
    with pytest.raises(WeightsError, match=message) as error:
        stylegan2.load(path)
    assert str(path) in str(error.value)
    assert not Runs.target.exists()


@pytest.mark.parametrize(("data", "message"), [
    (b"", "not a readable pickle"),
    (b"hello", "pickle"),
    (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", r"asks for os\.system"),
    (b"\x80\x04Pid\n.", "uses PERSID"),
    (b"\x80\x02\x82\x01.", "uses EXT1"),
    (b"\x80\x02(i__main__\nX\n.", "uses INST"),
    (b"\x80\x02]r\xff\xff\xff\x7f.", "claims 2147483647 memo entries"),
    (b"\x80\x02}.", "holds no networks"),
    (b"\x80\x02K\x01.", "holds no networks"),
])  # fmt: skip
def test_a_malformed_pickle_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        stylegan2.load(files.write(tmp_path / "evil.pkl", data))


def test_a_pickle_that_writes_more_bytes_than_it_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="writes more bytes than the file has"):
        stylegan2.load(files.write(tmp_path / "bomb.pkl", long_text()))


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_a_truncated_pickle_is_refused(keep: float, generator: torch.nn.Module, tmp_path: Path) -> None:
    data = files.stylegan2_pickle(generator, 4)
    with pytest.raises(WeightsError, match="not a readable pickle"):
        stylegan2.load(files.write(tmp_path / "half.pkl", data[: int(len(data) * keep)]))


@pytest.mark.parametrize(("damage", "message"), [
    ("nan", "synthesis.b4.const holds values that are not finite"),
    ("shape", "not the weights of this network: .*mapping.fc1.weight"),
    ("missing", "not the weights of this network: .*mapping.fc1.bias"),
    ("activation", "activation is 'swish'"),
    ("no average", "no averaged generator G_ema"),
    ("another network", "is not StyleGAN2's generator"),
])  # fmt: skip
def test_a_pickle_with_wrong_weights_is_refused(
    damage: str, message: str, generator: torch.nn.Module, tmp_path: Path
) -> None:
    mapping, conv = generator.mapping, generator.synthesis.b4.conv1  # type: ignore[union-attr]
    if damage == "nan":
        generator.synthesis.b4.const.data[0] = float("nan")  # type: ignore[union-attr]
    if damage == "shape":
        mapping.fc1.weight = torch.nn.Parameter(torch.zeros(3, 3))
    if damage == "missing":
        del mapping.fc1._parameters["bias"]
    data = files.stylegan2_pickle(generator, 4)
    if damage == "activation":
        data = data.replace(b"\x8c\x05lrelu", b"\x8c\x05swish")
    if damage == "no average":
        data = files.dump({"G": files.persistent(generator, "Generator", {})}, 4)
    if damage == "another network":
        data = files.dump({"G_ema": files.persistent(conv, "Other", {})}, 4)
    with pytest.raises(WeightsError, match=message):
        stylegan2.build(stylegan2.Options(), stylegan2.load(files.write(tmp_path / "w.pkl", data)))


# --- hostile files of torch's own format


def rewritten(path: Path, change: Any) -> None:
    """Write a torch zip anew, each member passed through change(name, data) -> (name, data, compression)."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            new, content, compression = change(name, data)
            archive.writestr(zipfile.ZipInfo(new), content, compress_type=compression)


LOADS = {"ddgan": ddgan, "ddpm": ddpm}


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize(("change", "message"), [
    (lambda n, d: (n, d, zipfile.ZIP_DEFLATED), "torch writes weights uncompressed"),
    (lambda n, d: (f"../{n}", d, zipfile.ZIP_STORED), "would lie outside of the archive"),
    (lambda n, d: (f"/etc/{n}", d, zipfile.ZIP_STORED), "would lie outside of the archive"),
])  # fmt: skip
def test_a_zip_that_unpacks_or_escapes_is_refused(name: str, change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(100_000)}, path)
    rewritten(path, change)
    with pytest.raises(WeightsError, match=message):
        LOADS[name].load(path)


def test_a_tensor_that_is_more_than_the_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**14, 2**14)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no plain tensor of the file's numbers"):
        ddgan.load(tmp_path / "w.pth")


def test_one_storage_under_many_names_is_refused(tmp_path: Path) -> None:
    shared = torch.zeros(2**16)
    torch.save({f"t{i}": shared for i in range(100)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="bytes of tensors in a file of"):
        ddgan.load(tmp_path / "w.pth")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_torch_file_is_refused(keep: float, tmp_path: Path) -> None:
    torch.save(files.pesser_tensors(), tmp_path / "w.ckpt")
    data = (tmp_path / "w.ckpt").read_bytes()
    (tmp_path / "w.ckpt").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(WeightsError, match="cannot be read"):
        ddpm.load(tmp_path / "w.ckpt")
