"""Small real data for the tests of metrics: clusters in 16 dimensions, with what a reference keeps of them."""

from __future__ import annotations

import numpy as np

from trilemma_bench.kinds import Array, Extractor, ExtractorKind, Moments, Reference

DIM, CLASSES, SKETCH = 16, 6, 8
CENTRES = np.random.default_rng(99).normal(size=(CLASSES, DIM)) * 2
HEAD = np.random.default_rng(98).normal(size=(DIM, CLASSES))


def features(count: int, *, seed: int, classes: int = CLASSES) -> Array:
    """Float32 [count, DIM] from the first `classes` clusters."""
    rng = np.random.default_rng(seed)
    return (CENTRES[rng.integers(classes, size=count)] + rng.normal(size=(count, DIM))).astype(np.float32)


def layers(found: Array) -> dict[str, Array]:
    """What an extractor with a classifier's head gives."""
    return {"features": found, "logits": (found @ HEAD).astype(np.float32)}


def extractor(name: str = "toy", *, is_inception: bool = False) -> ExtractorKind:
    def refuse(**options: object) -> Extractor:
        raise NotImplementedError

    return ExtractorKind(
        name,
        layers=("features", "logits"),
        build=refuse,
        available=lambda weights: None,
        is_inception=is_inception,
    )


def reference(
    *,
    count: int = 1500,
    subset: int = 600,
    held_out: int | None = 700,
    seed: int = 0,
    is_inception: bool = False,
) -> Reference:
    """Reference of `count` training samples, of which `subset` are kept; `held_out` None for no such split."""
    train = features(count, seed=seed)
    centre = train.mean(axis=0)
    components = np.linalg.svd(train - centre, full_matrices=False)[2][:SKETCH].T
    other = None if held_out is None else (features(held_out, seed=seed + 1) - centre) @ components
    return Reference(
        moments=Moments(count, train.mean(axis=0, dtype=np.float64), np.cov(train.T.astype(np.float64))),
        features=train[:subset],
        logits=layers(train[:subset])["logits"],
        components=components,
        centre=centre,
        train_sketch=(train - centre) @ components,
        held_out_sketch=other,
        identity="0" * 64,
        about={"extractor": "toy", "is_inception": is_inception},
    )
