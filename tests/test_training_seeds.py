"""Networks that were trained alike from several seeds: how they are chosen, measured and shown."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from trilemma_bench import registry
from trilemma_bench.cards import Card, find_card
from trilemma_bench.errors import UsageError, WeightsError
from trilemma_bench.models import open_model, parse_model
from trilemma_bench.record import Score, ScoredMetric, ScoreKind
from trilemma_bench.run import _over_training_seeds, evaluate, run_spec
from trilemma_bench.spec import RunSpec, load_protocol

PROTOCOL = """
name = "gaussians25-tiny-v1"
title = "tiny"
dataset = "gaussians25"
image_shape = [2]
num_generated = 1000
[reference]
num_features = 300
sketch_dim = 2
[[scores]]
metric = "mode_coverage"
extractor = "identity"
[timing]
num_images = 10
warmup = 0
repeats = 1
"""


def spec(model: str) -> RunSpec:
    return run_spec(parse_model(model), load_protocol("gaussians25-v1"))


def test_without_a_seed_all_networks_are_measured_and_their_mean_is_the_score(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(PROTOCOL)
    model = "ddim:steps=4"
    record = evaluate(model, "gaussians25", str(path), cache=tmp_path, out=tmp_path / "out")
    score = record.score("high_quality")
    assert score is not None and score.value is not None and score.interval is not None
    assert len(score.per_seed) == 5
    assert score.value == pytest.approx(np.mean(score.per_seed))
    assert score.stderr == pytest.approx(np.std(score.per_seed, ddof=1) / math.sqrt(5))
    assert score.uncertainty == "t interval over 5 training seeds"
    assert record.speed is not None and record.speed.nfe == 4
    one = evaluate(f"{model},train_seed=3", "gaussians25", str(path), cache=tmp_path)
    alone = one.score("high_quality")
    assert alone is not None and alone.value == score.per_seed[3]
    assert alone.per_seed == ()
    # A finished record is reused.
    again = evaluate(model, "gaussians25", str(path), cache=tmp_path, out=tmp_path / "out")
    assert again == record


def test_the_shipped_ddpm_covers_all_modes_with_good_points(tmp_path: Path) -> None:
    """One training seed, 2,000 points; 0.973 of them were of high quality when it was shipped."""
    path = tmp_path / "tiny.toml"
    path.write_text(PROTOCOL)
    record = evaluate("ddpm:train_seed=0", "gaussians25", str(path), cache=tmp_path, num_samples=2000)
    found = {item.kind.name: item.score.value or 0.0 for item in record.scores}
    assert found["modes_captured"] == found["modes_held"] == 25
    assert found["high_quality"] == pytest.approx(0.973, abs=0.015)
    assert found["mode_spread"] == pytest.approx(1.05, abs=0.05)
    assert record.speed is not None and record.speed.nfe == 500


def test_the_shipped_ddgan_covers_all_modes_in_four_steps(tmp_path: Path) -> None:
    """Every training seed, 1,000 points; 0.85 to 0.87 of 2,000 were of high quality when it was shipped."""
    path = tmp_path / "tiny.toml"
    path.write_text(PROTOCOL)
    record = evaluate("ddgan", "gaussians25", str(path), cache=tmp_path)
    modes, quality = record.score("modes_captured"), record.score("high_quality")
    assert modes is not None and sorted(modes.per_seed)[1:] == [25] * 4  # one seed of five misses two
    assert quality is not None and min(quality.per_seed) > 0.8
    assert record.speed is not None and record.speed.nfe == 4


def test_seeds_of_training_are_those_of_the_weights() -> None:
    assert open_model(spec("ddpm")).train_seeds == (0, 1, 2, 3, 4)
    assert open_model(spec("ddpm:train_seed=2")).train_seeds == ()
    assert open_model(spec("exact:ddpm")).train_seeds == ()
    keys = {open_model(spec(f"ddim:train_seed={seed}")).samples_key for seed in range(5)}
    assert len(keys) == 5


def test_a_seed_that_was_not_trained_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train_seed=5; there are the training seeds 0\.\.4"):
        open_model(spec("ddpm:train_seed=5"))
    with pytest.raises(UsageError, match=r"train_seed=many: there are weights for training seeds 0, 1, 2 \.\.\.\.$"):
        parse_model("ddpm:train_seed=many")
    with pytest.raises(UsageError, match="takes a built-in model without weights"):
        parse_model("exact:ddpm:train_seed=1")


def test_the_optimum_takes_the_chain_of_the_baseline_and_no_weights() -> None:
    model = open_model(spec("exact:ddim:steps=7"))
    assert model.family == "exact"
    assert model.sampler.expected_nfe == 7  # type: ignore[attr-defined]
    assert model.sampler.chain.betas.tolist() == open_model(spec("ddpm")).sampler.chain.betas.tolist()  # type: ignore[attr-defined]
    assert str(parse_model("exact:ddim:steps=7")) == "exact:ddim:steps=7"


@pytest.mark.parametrize("model", ["exact:ddgan:predict=eps", "exact:ddgan:latent=none"])
def test_the_optimum_does_not_take_the_name_of_an_ablation(model: str) -> None:
    with pytest.raises(UsageError, match="tells trained weights apart; the optimum has none. Leave it out"):
        parse_model(model)


@pytest.mark.parametrize("option", ["temperature=inf", "temperature=1e999"])
def test_a_number_without_bound_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"vae: option {option}: expected a finite number"):
        parse_model(f"vae:{option}")


def test_every_diffusion_and_score_sampler_has_its_optimum_but_students_and_latent_ones() -> None:
    protocol, without = load_protocol("gaussians25-v1"), set()
    for name in set(registry.names("sampler")) - {"stylegan2"}:  # of images alone
        try:
            open_model(run_spec(parse_model(f"exact:{name}"), protocol))
        except WeightsError as error:
            without.add((name, str(error)))
    said = "exact, gaussians25: the optimum of this family is not known in closed form."
    assert without == {(name, said) for name in ("consistency", "distilled", "flow", "gan", "lsgm", "vae")}


def test_the_optimum_of_images_is_not_known() -> None:
    protocol = load_protocol("cifar10-lite-v1")
    with pytest.raises(UsageError, match="the distribution of cifar10 is not known in closed form"):
        open_model(run_spec(parse_model("exact:ddpm"), protocol))


def test_a_family_without_a_baseline_for_points_says_how_to_train_one() -> None:
    with pytest.raises(WeightsError, match="stylegan2 has no baseline for gaussians25. Train one"):
        open_model(spec("stylegan2"))


def test_the_card_with_the_most_of_the_wanted_options_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(name: str, dataset: str, **options: int | str) -> Card:
        return Card(
            name=name, title="", sampler="x", dataset=dataset, weights="w", weights_digest="", licence="",
            parameters=1, gflops_per_evaluation=1.0, training={}, options=options,
        )  # fmt: skip

    cards = (card("plain", "a"), card("two", "a", steps=2), card("both", "a", steps=2, predict="eps"), card("b", "b"))
    monkeypatch.setattr("trilemma_bench.cards.cards_of", lambda sampler: cards)

    def found(dataset: str, **options: int | str) -> str | None:
        card = find_card("x", dataset, options)
        return card.name if card is not None else None

    assert found("a") == found("a", steps=3, other=1) == "plain"
    assert found("a", steps=2, other=1) == "two"
    assert found("a", steps=2, predict="eps") == "both"
    assert found("c") is None


def test_a_mean_over_training_seeds_has_no_interval_beyond_what_the_score_can_be() -> None:
    kind = ScoreKind(name="modes_captured", axis="coverage", higher_is_better=True)
    items = [
        ScoredMetric(kind=kind, score=Score(value=value, stderr=0.5, bounds=(0, 25)), features_key="f", score_key="s")
        for value in (24.0, 25.0, 20.0)
    ]
    found = _over_training_seeds(items).score
    assert found.value == 23 and found.interval is not None and found.bounds == (0, 25)
    assert found.interval[0] == pytest.approx(23 - 4.3027 * found.stderr, abs=1e-3) and found.interval[1] == 25
