"""The HTML report: what is in it, what hostile names cannot do, and what a browser makes of it."""

from __future__ import annotations

import html.parser
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranking_cases import FD, RECALL, record, score, scored, speed

from trilemma_bench import charts, report
from trilemma_bench.cli import main
from trilemma_bench.errors import UsageError
from trilemma_bench.frontier import frontier
from trilemma_bench.page import reproduce, to_html
from trilemma_bench.ranking import rows
from trilemma_bench.record import ResultRecord, Score, ScoreKind
from trilemma_bench.spec import SamplerSpec
from trilemma_bench.store import SampleShards, Shard

HOSTILE = "</script><img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script>"


def swept(steps: int, fd: float) -> ResultRecord:
    sampler = SamplerSpec(name="ddim", options={"steps": steps})
    found = record(
        str(sampler), scores=(scored(FD, score(fd)), scored(RECALL, score(0.5, 0.01))),
        found_speed=speed(steps * 0.4, nfe=steps), family="diffusion",
    )  # fmt: skip
    return found.model_copy(update={"spec": found.spec.model_copy(update={"sampler": sampler})})


RECORDS = [
    swept(5, 40.0), swept(10, 20.0), swept(50, 15.0),
    record("ddgan", 30.0, recall=0.2, found_speed=speed(0.1), family="gan"),
    record(HOSTILE, 50.0, recall=0.1, found_speed=speed(30), family="external"),
    record("broken", Score.failed(HOSTILE), recall=0.3, found_speed=speed(5)),
    record("real:split=test", 3.0, recall=0.9, family="real"),
    record("other", 1.0, protocol_name="other-v1", family="gan"),
]  # fmt: skip


def page(records: list[ResultRecord] = RECORDS, **grids: bytes) -> str:
    return to_html(rows(records), grids=grids, created="2026-05-04")


class Parsed(html.parser.HTMLParser):
    """Counts tags, collects attributes, and holds that they close in order."""

    VOID = ("meta", "link", "img", "input", "br", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


# --- the text ---------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_reaches_for_nothing_outside() -> None:
    found = Parsed(page())
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        for name in ("src", "href"):
            link = attributes.get(name)
            assert link is None or link.startswith(("#", "data:")), (tag, attributes)
        if (attributes.get("href") or "").startswith("#model-"):
            assert (attributes["href"] or "")[1:] in ids
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert sum(tag == "script" for tag, _ in found.tags) == 1


def test_policy_allows_this_script_and_style_alone() -> None:
    text = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]


def test_every_record_has_a_row_a_page_and_a_command() -> None:
    text = page()
    assert text.count("<tr data-name=") + text.count('<tr class="unranked"') >= len(RECORDS)
    assert text.count("<article ") == len(RECORDS)
    assert "trilemma-bench run --models ddim:steps=50 --dataset toy --protocol toy-v1" in text


def test_command_says_everything_that_the_spec_says() -> None:
    found = swept(5, 1.0)
    protocol = found.spec.protocol.with_num_generated(50)
    spec = found.spec.model_copy(update={"protocol": protocol, "seed": 3, "dtype": "bfloat16", "batch_size": 7})
    assert reproduce(found.model_copy(update={"spec": spec})) == (
        "trilemma-bench run --models ddim:steps=5 --dataset toy --protocol toy-v1 --num-samples 50 --seed 3 "
        "--dtype bfloat16 --batch-size 7"
    )


def of_cifar10(found: ResultRecord) -> ResultRecord:
    protocol = found.spec.protocol.model_copy(update={"dataset": "cifar10", "name": "toy-cifar10-v1"})
    return found.model_copy(update={"spec": found.spec.model_copy(update={"protocol": protocol})})


def test_the_papers_figures_stand_apart_without_a_best_one_or_a_page(tmp_path: Path) -> None:
    report.write_report([of_cifar10(RECORDS[0]), RECORDS[3]], tmp_path / "r.html", cache=tmp_path)
    text = (tmp_path / "r.html").read_text()
    assert text.count('<section class="protocol published"') == 1
    section = text[text.index('<section class="protocol published"') :].split("</section>")[0]
    assert "not measured here" in section and "Denoising Diffusion GAN (ours), T=4" in section and "V100" in section
    assert 'data-value="3.75"' in section and "arXiv 2112.07804" in section
    assert 'class="best"' not in section and "href" not in section and "memory" not in section
    report.write_report([RECORDS[3]], tmp_path / "none.html", cache=tmp_path)
    assert "not measured here" not in (tmp_path / "none.html").read_text()


MODES = ScoreKind(name="modes_captured", axis="coverage", higher_is_better=True, label="modes")


def test_known_modes_have_a_panel_that_is_read_aloud_too() -> None:
    counts = (0, 1, *[4] * 22, 100)
    found = scored(MODES, score(24.0).model_copy(update={"histogram": counts}))
    text = page([record(HOSTILE, 30.0, scores=(found,)), RECORDS[0]])
    Parsed(text)
    assert text.count('<svg class="modes"') == 1
    panel = text[text.index('<svg class="modes"') :].split("</svg>")[0]
    assert "24 of 25 modes have a sample; the fewest 0, the most 100, a fair share 7.56" in panel
    assert panel.count('class="missing"') == 1 and "<script>" not in panel
    # The first mode lies at the lower left: row 4 of 0..4, column 0, cells of 48.
    assert 'class="missing" d="M0 192l' in panel
    assert charts.ramp(1) in panel
    many = charts.modes("m", [3] * 1000)
    assert many.count("<path") == 1 and len(many) < 40_000


def test_no_records_make_a_page_too() -> None:
    Parsed(page([]))
    assert "No results." in page([])


# --- charts -----------------------------------------------------------------------------------------------


def test_trilemma_chart_places_marks_by_the_logarithm_of_seconds_and_draws_the_front() -> None:
    table = rows(RECORDS[:4]).tables[0]
    found = frontier(table)
    assert found is not None
    chart = charts.trilemma(table, found, lambda row: "#x")
    places = dict(re.findall(r"aria-label=\"(ddim:steps=\d+|ddgan): .*?<circle cx=\"([\d.]+)\"", chart))
    x = {name: float(place) for name, place in places.items()}
    # 0.1, 2, 4 and 20 seconds.
    per_decade = x["ddim:steps=50"] - x["ddim:steps=5"]
    assert x["ddim:steps=5"] - x["ddgan"] == pytest.approx(per_decade * np.log10(20), abs=0.3)
    (front,) = re.findall(r'class="front" points="([^"]*)"', chart)
    corners = [tuple(map(float, pair.split(","))) for pair in front.split()]
    # ddim:steps=5 is worse and slower than ddgan, and efficient by its coverage alone.
    on_front = [x[name] for name in ("ddgan", "ddim:steps=10", "ddim:steps=50")]
    assert [corner[0] for corner in corners[::2]] == pytest.approx(on_front)
    assert chart.count('class="mark efficient"') == 4


def test_names_in_a_crowd_stand_apart_and_those_without_room_wait_for_the_pointer() -> None:
    crowd = [record(f"ddim:steps={n}", 10 + n / 9, recall=n / 99, found_speed=speed(1 + n / 9)) for n in range(1, 13)]
    table = rows(crowd).tables[0]
    found = frontier(table)
    assert found is not None
    chart = charts.trilemma(table, found, lambda row: "#x")
    texts = re.findall(r'<text class="name( crowded)?" x="([\d.]+)"( text-anchor="end")? y="([\d.]+)">([^<]+)<', chart)
    assert len(texts) == len(crowd)
    boxes = []
    for crowded, x, end, y, text in texts:
        width = 7 * len(text)  # narrower than drawn
        left = float(x) - (width if end else 0)
        if not crowded:
            boxes.append((left, left + width, float(y) - 11, float(y)))
    assert 2 <= len(boxes) < len(crowd)
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[0] >= other[1] or other[0] >= one[1] or one[2] >= other[3] or other[2] >= one[3]


def test_ticks_are_round_and_inside() -> None:
    assert charts.scale([0.3, 40.0], 0, 100, log=True).ticks() == [0.1, 1, 10, 100]
    ticks = charts.scale([13.0, 47.0], 0, 100, log=False).ticks()
    assert ticks == [20, 30, 40]
    assert charts.ramp(0) == "#440154" and charts.ramp(1) == "#fde725"


# --- files ------------------------------------------------------------------------------------------------


def keep_samples(found: ResultRecord, cache: Path, value: int) -> None:
    shards = SampleShards(cache, found.samples_key, found.spec.seed, 70)
    images = np.full((70, 3, 8, 8), value, np.uint8)
    shards.write(0, Shard(images, shards.seeds(0), None))


def test_grids_come_from_kept_samples_and_their_lack_is_said(tmp_path: Path) -> None:
    keep_samples(RECORDS[0], tmp_path, 7)
    left_out = report.write_report(RECORDS, tmp_path / "r.html", cache=tmp_path)
    assert len(left_out) == len(RECORDS) - 1 and all("no longer kept" in line for line in left_out)
    text = (tmp_path / "r.html").read_text()
    assert text.count('src="data:image/png;base64,') == 1
    png = report.grid(RECORDS[0], tmp_path)
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (64, 64) and image.getpixel((63, 63)) == (7, 7, 7)


def test_page_stays_under_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, found in enumerate(RECORDS[:3]):
        keep_samples(found, tmp_path, value)
    report.write_report(RECORDS, tmp_path / "all.html", cache=tmp_path)
    size = (tmp_path / "all.html").stat().st_size
    monkeypatch.setattr(report, "MOST_BYTES", size - 500)
    left_out = report.write_report(RECORDS, tmp_path / "less.html", cache=tmp_path)
    assert (tmp_path / "less.html").stat().st_size < size - 500
    assert any("larger than" in line for line in left_out)
    monkeypatch.setattr(report, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="Report fewer"):
        report.write_report(RECORDS, tmp_path / "none.html", cache=tmp_path)


def test_report_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path))
    (tmp_path / "results" / "toy-v1").mkdir(parents=True)
    (tmp_path / "results" / "toy-v1" / "a.json").write_text(RECORDS[0].dumps())
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "page.html")])
    assert left.value.code == 0 and "wrote" in capsys.readouterr().out
    Parsed((tmp_path / "page.html").read_text())


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium through Playwright, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page with two grids, and its console, which must stay silent."""
    for value, found in enumerate(RECORDS[:2]):
        keep_samples(found, tmp_path, 90 * value + 60)
    report.write_report([*RECORDS, of_cifar10(RECORDS[0])], tmp_path / "r.html", cache=tmp_path)
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    found = context.new_page()
    said: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
    found.goto((tmp_path / "r.html").as_uri())
    yield found
    assert said == []
    context.close()


def board(opened: Any) -> Any:
    return opened.locator('section[data-protocol="toy-v1"] table.board')


def names(opened: Any) -> list[str]:
    return [text[:12] for text in board(opened).locator("tbody tr:visible td:first-child").all_inner_texts()]


def test_browser_sorts_by_a_click_and_by_keyboard_with_unranked_rows_last(opened: Any) -> None:
    table = board(opened)
    head = table.get_by_role("button", name="s / 100 images")
    head.click()
    assert table.locator("th[aria-sort=ascending]").count() == 1
    found = names(opened)
    assert found[0] == "ddgan" and found[-1] == "real:split=t"
    head.focus()
    opened.keyboard.press("Enter")
    assert table.locator("th[aria-sort=descending]").count() == 1
    assert names(opened)[0] == HOSTILE[:12] and names(opened)[-1] == "real:split=t"


def test_browser_filters_by_protocol_family_and_name(opened: Any) -> None:
    opened.get_by_label("Protocol").select_option("other-v1")
    assert opened.locator("section.protocol:visible").count() == 1
    opened.get_by_label("Protocol").select_option("")
    opened.get_by_label("Family").select_option("diffusion")
    assert sorted(names(opened)) == ["ddim:steps=1", "ddim:steps=5", "ddim:steps=5"]
    opened.get_by_label("Model").fill("steps=10")
    assert names(opened) == ["ddim:steps=1"]
    assert opened.locator("#status").inner_text() == "1 row"


def test_browser_sorts_published_figures_and_hides_them_with_their_data_set(opened: Any) -> None:
    section = opened.locator("section.published")
    section.get_by_role("button", name="FID", exact=True).click()
    values = section.locator("tbody tr").evaluate_all("rows => rows.map(row => row.cells[1].dataset.value)")
    numbers = [float(value) for value in values if value]
    assert len(numbers) > 50 and numbers == sorted(numbers) and "" not in values[: len(numbers)]
    opened.get_by_label("Data set").select_option("toy")
    assert not section.is_visible()
    opened.get_by_label("Data set").select_option("")
    opened.get_by_label("Family").select_option("diffusion")
    assert section.locator("tbody tr:visible").count() == 0


def test_browser_opens_a_grid_at_full_size_and_closes_it_by_keyboard(opened: Any) -> None:
    opened.locator(".gallery button").first.click()
    dialog = opened.locator("dialog[open]")
    assert dialog.count() == 1
    assert dialog.locator("img").evaluate("image => image.naturalWidth") == 64
    assert dialog.locator("img").evaluate("image => image.clientWidth") >= 500
    opened.keyboard.press("Escape")
    assert opened.locator("dialog[open]").count() == 0


def test_browser_shows_a_hostile_name_as_text(opened: Any) -> None:
    assert opened.title() == "trilemma-bench"
    assert opened.locator("img[src=x]").count() == 0
    assert opened.get_by_role("link", name=HOSTILE, exact=True).count() >= 1


def test_browser_shows_one_model_as_a_page_and_goes_back(opened: Any) -> None:
    opened.get_by_role("link", name="ddgan", exact=True).first.click()
    assert opened.locator("article:visible").count() == 1
    assert opened.locator("article:visible h3").inner_text() == "ddgan"
    assert not board(opened).is_visible()
    opened.get_by_role("link", name="Back to the leaderboard").click()
    assert board(opened).is_visible()


def test_browser_fits_a_phone_and_has_a_dark_theme(opened: Any, tmp_path: Path) -> None:
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.locator("#theme").click()
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != light
    opened.set_viewport_size({"width": 375, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    # Numbers stay on their line: beside the bars they once stood a letter a line.
    heights = opened.locator(".coverage tbody tr").evaluate_all(
        "rows => rows.filter(row => row.dataset.name.length < 20).map(row => row.clientHeight)"
    )
    assert len(heights) > 3 and max(heights) < 80
    # So did how an interval was got, in the column that was left over.
    opened.get_by_role("link", name="ddgan", exact=True).first.click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    assert (
        min(
            opened.locator("article:visible .facts td:last-child").evaluate_all(
                "all => all.map(one => one.clientWidth)"
            )
        )
        > 150
    )
