"""Official StyleGAN2-ADA pickles, read without running anything in them.

Such a file holds `training_set_kwargs, G, D, G_ema, augment_pipe`. Each module in it is an object that carries its
program's source text, which a plain `pickle.load` executes; tensors come through torch's rebuild functions, whose
bytes are a second, inner file. Here every module becomes an inert node that keeps its attributes, inner files are
read as storages alone (`weights_only`), and any other name is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma_bench import pickles
from trilemma_bench.errors import WeightsError

MAX_FILE_BYTES = 4 * 2**30
MAX_DEPTH = 32

_PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
_MAPPING_LR_MULTIPLIER = 0.01


class _Dict(dict[Any, Any]):
    """Stands for OrderedDict and dnnlib's EasyDict; attributes that a pickle would set on it are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Set(set[Any]):
    def __setstate__(self, state: Any) -> None:
        pass


class Node:
    """Stands for a module of the file: the name of its class and its attributes; its source text is not kept."""

    def __init__(self, meta: Any) -> None:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise ValueError("a module without a state")
        self.class_name = str(meta.get("class_name"))
        self.state: dict[Any, Any] = meta["state"]

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a module whose state is set twice")

    def get(self, name: str) -> Any:
        """An attribute, None where there is none."""
        return self.state.get(name)

    def child(self, name: str) -> Node:
        """A submodule.

        Raises:
            WeightsError: There is none of that name.
        """
        found = (self.get("_modules") or {}).get(name)
        if not isinstance(found, Node):
            raise WeightsError(f"the network {self.class_name} has no part {name!r}")
        return found


def read_networks(path: Path) -> dict[str, Node]:
    """The modules of an official pickle by their name in it (`G_ema`, `G`, `D` ...).

    Raises:
        WeightsError: Missing, too large, not such a pickle, or one that asks for anything else.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise WeightsError(f"{path}: {size} bytes; at most {MAX_FILE_BYTES} are read.")
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}.") from error
    content = pickles.load(
        data, str(path), allowed=_allowed(len(data)), operations=pickles.OBJECTS, error=WeightsError,
        purpose="StyleGAN2's weights", advice="Get the file from its publisher.",
    )  # fmt: skip
    networks = {k: v for k, v in content.items() if isinstance(v, Node)} if isinstance(content, dict) else {}
    if not networks:
        raise WeightsError(f"{path}: holds no networks of StyleGAN2-ADA. Give a file such as cifar10.pkl.")
    return networks


def _allowed(size: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """What stands for each name in a file of `size` bytes."""
    return {
        _PERSISTENT: Node,
        ("dnnlib.util", "EasyDict"): _Dict,
        ("collections", "OrderedDict"): _Dict,
        ("builtins", "set"): _Set,
        ("__builtin__", "set"): _Set,
        ("_codecs", "encode"): pickles.Encoder(size),
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: _as_tensor(data),
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch.storage", "_load_from_bytes"): _InnerFiles(size),
    }


def _as_tensor(data: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is not a tensor")
    return data


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage that lies within it and repeats nothing."""
    if not isinstance(storage, torch.TypedStorage):
        raise ValueError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor whose shape is not one")
    length = storage._size()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 would make any size out of four bytes.
    if prod(size) > length or (prod(size) and last >= length):
        raise ValueError(f"a tensor of {list(size)} in a storage of {length} numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


class _InnerFiles:
    """Reads the inner files, together no longer than the outer one."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __call__(self, data: Any) -> torch.TypedStorage:
        if not isinstance(data, bytes | bytearray):
            raise ValueError("an inner file that is not bytes")
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("its inner files are longer than it is")
        if data[:2] == b"PK":
            # The authors' program writes torch's older format; a zip could unpack to any size.
            raise ValueError("an inner file is a zip")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            # Torch's own text advises to load what may run code.
            raise ValueError("an inner file that is not a storage; nothing in it was run") from error
        if not isinstance(found, torch.TypedStorage):
            raise ValueError(f"an inner file holds {type(found).__name__}, not a storage")
        return found


# --- from a module to tensors and a configuration -----------------------------------------------------------


def tensors_of(node: Node, where: str) -> dict[str, Tensor]:
    """The state dict of a module: parameters and persistent buffers by their full names.

    Raises:
        WeightsError: A tree that is too deep, or that holds a module twice.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(node: Node, prefix: str, depth: int) -> None:
        if depth > MAX_DEPTH or id(node) in seen:
            raise WeightsError(f"{where}: a network that holds a part twice, or over {MAX_DEPTH} levels. Refused.")
        seen.add(id(node))
        transient = node.get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            for name, tensor in (node.get(group) or {}).items():
                if isinstance(tensor, Tensor) and name not in transient:
                    found[f"{prefix}{name}"] = tensor
        for name, child in (node.get("_modules") or {}).items():
            if isinstance(child, Node):
                walk(child, f"{prefix}{name}.", depth + 1)

    try:
        walk(node, "", 0)
    except (AttributeError, TypeError) as error:
        raise WeightsError(f"{where}: a network whose parts are not as torch keeps them: {error}. Refused.") from error
    return found


def generator_config(node: Node, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The generator's configuration, read off its attributes and shapes.

    Raises:
        WeightsError: Not StyleGAN2's generator, or one of a kind that is not built here; says what.
    """
    names = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
    config: dict[str, Any] = {name: node.get(name) for name in names}
    missing = [name for name, value in config.items() if type(value) is not int]
    if missing or "synthesis.b4.const" not in tensors:
        raise WeightsError(f"{where}: {node.class_name} is not StyleGAN2's generator (no {(*missing, 'b4.const')[0]}).")
    try:
        mapping, block = node.child("mapping"), node.child("synthesis").child("b4")
        layer = block.child("conv1")
        first = mapping.child("fc0")
    except WeightsError as error:
        raise WeightsError(f"{where}: {error}. Only StyleGAN2(-ADA) is read.") from error
    for part, name, wanted in ((layer, "activation", "lrelu"), (layer, "use_noise", True),
                               (first, "bias_gain", _MAPPING_LR_MULTIPLIER)):  # fmt: skip
        if part.get(name) not in (None, wanted):
            raise WeightsError(f"{where}: {name} is {part.get(name)!r}; only {wanted!r} is built here.")
    widths = {
        int(key.split(".")[1][1:]): tensor.shape[0]
        for key, tensor in tensors.items()
        if key.startswith("synthesis.b") and key.endswith(".conv1.weight")
    }
    widest = max(widths.values())
    config.update(
        mapping_layers=sum(key.startswith("mapping.fc") and key.endswith(".weight") for key in tensors),
        channel_max=widest,
        # Widths are min(channel_base // r, channel_max): the smallest base that gives them all.
        channel_base=max(resolution * width for resolution, width in widths.items()),
        architecture=block.get("architecture") or "skip",
        conv_clamp=layer.get("conv_clamp"),
    )
    return config
