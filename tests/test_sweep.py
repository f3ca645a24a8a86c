"""Grids of options, the curves of their records, and the fewest evaluations that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranking_cases import FD, RECALL, record, score, scored, speed
from sampler_cases import TINY, lively
from small_world import make_world

from trilemma_bench.cli import main
from trilemma_bench.errors import UsageError
from trilemma_bench.models import parse_models
from trilemma_bench.ranking import Table, rows
from trilemma_bench.record import ResultRecord
from trilemma_bench.spec import SamplerSpec
from trilemma_bench.sweep import curves, expand, fewest_evaluations
from trilemma_bench.training._loop import write_weights


def test_grid_is_the_product_with_the_first_option_slowest() -> None:
    assert expand("ddim", ["steps=5,10", "eta=0,1"]) == [
        "ddim:steps=5,eta=0", "ddim:steps=5,eta=1", "ddim:steps=10,eta=0", "ddim:steps=10,eta=1",
    ]  # fmt: skip


def test_options_and_weights_of_the_model_stay_and_all_points_are_models() -> None:
    found = expand("ddim:spacing=leading@w.safetensors", ["steps=5, 10,5"])
    assert found == ["ddim:spacing=leading,steps=5@w.safetensors", "ddim:spacing=leading,steps=10@w.safetensors"]
    assert [spec.options for spec in parse_models(",".join(found))] == [
        {"steps": 5, "spacing": "leading"}, {"steps": 10, "spacing": "leading"},
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["untrained", "exact"])
def test_untrained_and_exact_models_have_grids_and_curves_too(kind: str) -> None:
    assert expand(f"{kind}:ddim", ["steps=5,10"]) == [f"{kind}:ddim:steps=5", f"{kind}:ddim:steps=10"]
    found = expand(f"{kind}:ddim:eta=1", ["steps=5,10"])
    assert [str(spec) for spec in parse_models(",".join(found))] == [
        f"{kind}:ddim:steps=5,eta=1.0", f"{kind}:ddim:steps=10,eta=1.0",
    ]  # fmt: skip
    records = [point(steps, 1.0) for steps in (5, 10)]
    samplers = [each.spec.sampler.model_copy(update={"kind": kind}) for each in records]
    records = [
        each.model_copy(update={"spec": each.spec.model_copy(update={"sampler": sampler})})
        for each, sampler in zip(records, samplers, strict=True)
    ]
    (curve,) = curves(table(*records), "fd")
    assert curve.label == f"{kind}:ddim:eta=0.0"


@pytest.mark.parametrize(
    "over", [[], ["steps"], ["steps="], ["=5"], ["steps=5", "steps=6"], ["eta=1"], ["steps=5", "eta=1"],
             ["steps=" + ",".join(map(str, range(201)))]]
)  # fmt: skip
def test_what_is_no_grid_is_refused(over: list[str]) -> None:
    with pytest.raises(UsageError):
        expand("ddim:eta=0", over)


# --- curves -----------------------------------------------------------------------------------------------


def point(steps: int, fd: float, *, eta: float = 0.0, recall: float = 0.5, **options: Any) -> ResultRecord:
    sampler = SamplerSpec(name="ddim", options={"steps": steps, "eta": eta, **options})
    found = record(
        str(sampler), scores=(scored(FD, score(fd, 0.1)), scored(RECALL, score(recall))), found_speed=speed(nfe=steps)
    )
    return found.model_copy(update={"spec": found.spec.model_copy(update={"sampler": sampler})})


def table(*records: ResultRecord) -> Table:
    return rows(records).tables[0]


POINTS = [point(50, 10.0), point(5, 40.0), point(20, 10.4), point(10, 12.0), point(5, 50.0, eta=1.0),
          point(10, 30.0, eta=1.0), record("ddgan", 3.0, found_speed=speed())]  # fmt: skip


def test_curves_are_by_evaluations_and_other_options_make_others() -> None:
    found = curves(table(*POINTS), "fd")
    assert [curve.label for curve in found] == ["ddim:eta=0.0", "ddim:eta=1.0"]
    assert [(p.nfe, p.value) for p in found[0].points] == [(5, 40.0), (10, 12.0), (20, 10.4), (50, 10.0)]


def test_whatever_sets_the_number_of_evaluations_makes_a_curve() -> None:
    def measured(nfe: int, **options: Any) -> ResultRecord:
        sampler = SamplerSpec(name="ebm", options=options)
        found = record(str(sampler), scores=(scored(FD, score(1.0, 0.1)),), found_speed=speed(nfe=nfe))
        return found.model_copy(update={"spec": found.spec.model_copy(update={"sampler": sampler})})

    found = [measured(120), measured(300, langevin_steps=30), measured(600, langevin_steps=60)]
    (curve,) = curves(table(*found), "fd")
    assert [each.nfe for each in curve.points] == [120, 300, 600]


def test_fewest_evaluations_within_a_share_of_the_best() -> None:
    found = table(*POINTS)
    (curve, _) = curves(found, "fd")
    fd = found.columns[0]
    assert fewest_evaluations(curve, fd).nfe == 20
    assert fewest_evaluations(curve, fd, within=0.2).nfe == 10
    assert fewest_evaluations(curve, fd, within=0).nfe == 50


def test_higher_is_better_counts_downwards() -> None:
    found = table(point(5, 1.0, recall=0.80), point(10, 1.0, recall=0.97), point(20, 1.0, recall=1.0))
    (curve,) = curves(found, "recall")
    assert fewest_evaluations(curve, found.columns[1]).nfe == 10


# --- the command ------------------------------------------------------------------------------------------


def test_sweep_command_leaves_a_record_a_point_and_says_what_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install trilemma-bench[plot]")
    images, protocol = make_world(tmp_path, count=30)
    config = {**TINY["ddim"].config, "num_train_steps": 50}
    tensors = lively("ddim", config).tensors
    assert tensors is not None
    write_weights(tmp_path / "w.safetensors", tensors, config=config)
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = f"ddim@{tmp_path / 'w.safetensors'}"
    world = ["--dataset", str(images), "--protocol", str(protocol)]
    with pytest.raises(SystemExit) as left:
        main(["sweep", "--model", model, "--over", "steps=2,4", "--quiet", "--figures", "figures", *world])
    assert left.value.code == 0
    assert "evaluations are the fewest within 5% of the best FD" in capsys.readouterr().out
    assert len(list((tmp_path / "results").glob("*/*.json"))) == 2
    assert [path.suffix for path in sorted((tmp_path / "figures").glob("*curves*"))] == [".png", ".svg"]
    with pytest.raises(SystemExit) as left:
        main(["sweep", "--model", model, "--over", "steps=2,4", "--quiet", "--metric", "fid", *world])
    assert left.value.code == 2
    assert "FID is measured on TF Inception features only" in capsys.readouterr().err
