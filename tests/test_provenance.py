"""Records that can be traced: verify, ls results, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranking_cases import FD, NEAR, RECALL, record, score, scored
from sampler_cases import TINY_STYLEGAN2, lively
from small_world import make_world

from trilemma_bench import cli
from trilemma_bench.comparison import compare
from trilemma_bench.errors import UsageError
from trilemma_bench.provenance import verify
from trilemma_bench.record import ResultRecord, Score, ScoredMetric
from trilemma_bench.results import find_pair, find_record
from trilemma_bench.run import Settings, evaluate, find_data

# --- compare


def estimates(value: float, stderr: float, replicates: tuple[float, ...] | None = None) -> Score:
    return Score(value=value, stderr=stderr, interval=(value - 2 * stderr, value + 2 * stderr), replicates=replicates)


def test_a_comparison_says_which_is_better_by_the_scores_direction() -> None:
    first = record("x", estimates(10.0, 0.5), scores=(scored(RECALL, estimates(0.4, 0.01)),))
    second = record("y", estimates(20.0, 0.5), scores=(scored(RECALL, estimates(0.5, 0.01)),))
    found = {each.name: each for each in compare(first, second)}
    assert found["fd_toy"].verdict == "a is better"
    assert found["recall_toy"].verdict == "b is better"
    fd = found["fd_toy"].difference
    assert fd is not None and fd.value == -10
    assert fd.interval == pytest.approx((-10 - 1.959964 * 0.5 * 2**0.5, -10 + 1.959964 * 0.5 * 2**0.5), rel=1e-5)


def test_a_comparison_with_a_target_asks_which_is_nearer() -> None:
    def verdict(a: float, b: float) -> str:
        first, second = (record(name, scores=(scored(NEAR, estimates(x, 1e-4)),)) for name, x in (("x", a), ("y", b)))
        return next(each.verdict for each in compare(first, second) if each.name == "near_toy")

    assert verdict(0.999, 0.992) == verdict(0.90, 0.98) == "b is better"
    assert verdict(0.98, 0.90) == "a is better"
    assert verdict(0.98, 0.999) == "differs"


def test_near_scores_cannot_be_told_apart_and_p_is_corrected() -> None:
    first = record("x", estimates(10.0, 1.0), scores=(scored(RECALL, estimates(0.40, 0.01)),))
    second = record("y", estimates(10.5, 1.0), scores=(scored(RECALL, estimates(0.43, 0.01)),))
    found = {each.name: each for each in compare(first, second)}
    assert found["fd_toy"].verdict == "cannot be told apart"
    recall = found["recall_toy"]
    assert recall.difference is not None
    assert recall.p == pytest.approx(2 * recall.difference.p)


@pytest.mark.parametrize(("item", "note"), [
    (scored(FD, score(20.0), features_key="f2"), "other features"),
    (scored(FD, score(20.0), score_key="s2"), "other parameters"),
    (scored(FD, Score.failed("out of memory")), "out of memory"),
    (scored(FD, Score(value=1.0)), "no standard error"),
])  # fmt: skip
def test_what_was_measured_otherwise_is_not_compared(item: ScoredMetric, note: str) -> None:
    other = record("y", scores=(item,))
    (found,) = compare(record("x", 10.0), other)
    assert (found.verdict, found.difference) == ("not comparable", None)
    assert note in found.note


def test_a_score_that_one_lacks_is_named() -> None:
    found = compare(record("x", 10.0, recall=0.4), record("y", 20.0))
    assert [each.note for each in found if each.name == "recall_toy"] == ["y has no such score"]


# --- verify


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any, Settings]:
    """The record of a tiny official-style generator of 8 x 8 images, and what it was made from."""
    from safetensors.torch import save_file

    images, protocol = make_world(tmp_path)
    config = {"generator": {**TINY_STYLEGAN2, "img_resolution": 8}}
    weights = lively("stylegan2", config)
    assert weights.tensors is not None
    tensors = {key: tensor.contiguous() for key, tensor in weights.tensors.items()}
    save_file(tensors, tmp_path / "g.safetensors", {"config": json.dumps(config)})
    settings = Settings(out=tmp_path / "results", cache=tmp_path / "cache")
    evaluate(f"stylegan2@{tmp_path / 'g.safetensors'}", str(images), str(protocol), settings=settings)
    (path,) = (tmp_path / "results").glob("*/*.json")
    return path, find_data(str(images), settings), settings


def verdicts(made: tuple[Path, Any, Settings]) -> dict[str, str]:
    return {each.what: each.verdict for each in verify(*made)}


def test_an_honest_record_agrees_in_all_that_can_be_made_again(made: tuple[Path, Any, Settings]) -> None:
    found = verdicts(made)
    assert found.pop("protocol") == "not checked"  # the test's own
    assert {"file name", "weights", "samples", "extractor identity", "reference identity", "score fd_identity",
            "score recall_identity"} <= found.keys()  # fmt: skip
    assert set(found.values()) == {"agrees"}


def edited(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("change", "what"), [
    (lambda c: c["scores"][0]["score"].update(value=c["scores"][0]["score"]["value"] * 1.001), "score fd_identity"),
    (lambda c: c["provenance"].update(samples_digest="0" * 64), "samples"),
    (lambda c: c["provenance"].update(weights_digest="0" * 64), "weights"),
    (lambda c: c["provenance"]["reference_digests"].update(identity="0" * 64), "reference identity"),
    (lambda c: c["provenance"]["extractor_identities"].update(identity="0" * 64), "extractor identity"),
])  # fmt: skip
def test_a_record_that_was_altered_is_found_out(made: tuple[Path, Any, Settings], change: Any, what: str) -> None:
    edited(made[0], change)
    found = verdicts(made)
    assert [name for name, verdict in found.items() if verdict == "differs"] == [what]


@pytest.mark.parametrize(("model", "said"), [("Another CPU", True), (None, False)])
def test_samples_of_another_processor_are_said_to_be(made: tuple[Path, Any, Settings], model: Any, said: bool) -> None:
    edited(made[0], lambda c: c["provenance"].update(samples_digest="0" * 64))
    if model:
        edited(made[0], lambda c: c["hardware"].update(model=model))
    (check,) = [each for each in verify(*made) if each.what == "samples"]
    assert check.verdict == "differs"
    assert ("drawn on Another CPU, here is" in check.detail) == said


def test_without_samples_nothing_is_claimed(made: tuple[Path, Any, Settings]) -> None:
    for path in (made[2].cache / "samples").rglob("*.npz"):  # type: ignore[operator]
        path.unlink()
    (check,) = [each for each in verify(*made) if each.what == "samples and scores"]
    assert check.verdict == "not checked" and "not in the cache" in check.detail


def test_other_weights_under_the_same_path_are_noticed(made: tuple[Path, Any, Settings], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "g.safetensors")
    tensors["mapping.fc0.bias"] += 1
    config = {"generator": {**TINY_STYLEGAN2, "img_resolution": 8}}
    save_file(tensors, tmp_path / "g.safetensors", {"config": json.dumps(config)})
    (check,) = [each for each in verify(*made) if each.what == "samples and scores"]
    assert "other weights or options" in check.detail


def test_a_renamed_file_is_noticed(made: tuple[Path, Any, Settings]) -> None:
    moved = made[0].rename(made[0].with_name("another.json"))
    assert verdicts((moved, *made[1:]))["file name"] == "differs"


# --- the command line


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


def test_records_are_listed_verified_and_compared_by_command(
    made: tuple[Path, Any, Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    out, path = str(tmp_path / "results"), made[0]
    assert call("ls", "results", "--out", out) == 0
    said = ResultRecord.read(path)
    line = capsys.readouterr().out
    assert path.stem in line and str(said.provenance.weights_digest)[:12] in line
    assert call("verify", str(path), "--dataset", str(tmp_path / "images"), "--quiet") == 0
    assert "agrees: samples" in capsys.readouterr().out
    assert call("verify", str(path), "--quiet") == 2
    assert "Say with --dataset where they are" in capsys.readouterr().err
    assert call("compare", said.model, path.stem, "--out", out) == 0
    assert "cannot be told apart" in capsys.readouterr().out
    edited(path, lambda content: content["provenance"].update(samples_digest="0" * 64))
    assert call("verify", str(path), "--dataset", str(tmp_path / "images"), "--quiet") == 1


def test_a_model_under_several_protocols_is_compared_under_the_others(tmp_path: Path) -> None:
    for model, protocols in (("a", ("one-v1",)), ("b", ("one-v1", "two-v1"))):
        for protocol in protocols:
            found = record(model, 1.0, protocol_name=protocol)
            (tmp_path / protocol).mkdir(exist_ok=True)
            (tmp_path / protocol / f"{found.name}.json").write_text(found.dumps())
    first, second = find_pair("a", "b", tmp_path)
    assert (first.model, second.model) == ("a", "b") and second.spec.protocol.name == "one-v1"
    with pytest.raises(UsageError, match="has 2 records of b"):
        find_pair("b", "b", tmp_path)


def test_a_record_that_is_not_there_is_named(made: tuple[Path, Any, Settings], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no record named 'nobody'"):
        find_record("nobody", tmp_path / "results")
