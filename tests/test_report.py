"""Laws of the report: nothing is hidden, nothing is fetched, nothing simulated looks good, and every format says the same numbers."""

import csv
import io
import itertools
import json
from dataclasses import fields, replace
from functools import reduce
from hashlib import sha256
from html.parser import HTMLParser
from urllib.parse import parse_qs

import pytest

pytest.importorskip("altair", reason="the report needs altair, vl-convert, jinja2 and rich")
from pydantic import TypeAdapter
from results_fixture import results, whole
from rich.console import Console

from compress.recipe import built_in
from evaluators import report as package
from evaluators.report import charts, counts, drawing, files, html, markdown, numbers, reading, recommending, rows, terminal, words, write_reports
from evaluators.results import Agreement, Arm, Estimate, Estimated, Gpu, Instructions, Metric, Results, Score, TensorRow

HOSTILE = "<script>alert(1)</script>\"'><img src=https://evil.example/x onerror=alert(1)>|`]( javascript:x)*_{{7*7}}{%raw%}[bold red]\nnext"
VOID = {"meta", "link", "input", "img", "br", "hr"}


class Document(HTMLParser):
    """Tags with attributes, and text with the tags it stands in."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass  # td and tr may be left open

    def handle_data(self, data):
        self.texts.append((data, tuple(self.open)))

    def words(self, without: tuple[str, ...] = ("script", "style")) -> str:
        return " ".join(" ".join(text for text, inside in self.texts if not {tag for tag, _ in inside} & set(without)).split())


@pytest.fixture(scope="module")
def study() -> Results:
    return results()


@pytest.fixture(scope="module")
def page(study) -> str:
    return whole(html.page(study))


def printed(study: Results, width: int = 110) -> str:
    text = io.StringIO()
    terminal.print_table(study, Console(file=text, width=width, force_terminal=False))
    return text.getvalue()


def one_line(text: str) -> str:
    return " ".join(text.split())


def unescaped(text: str) -> str:
    return one_line(text.replace("\\", "").replace("&lt;", "<").replace("&gt;", ">").replace("&colon;", ":").replace("&amp;", "&"))


def with_arm(study: Results, index: int, **changes) -> Results:
    arms = list(study.arms)
    arms[index] = replace(arms[index], **changes)
    return replace(study, arms=tuple(arms))


def index_of(study: Results, recipe: str, runtime: str) -> int:
    return next(i for i, arm in enumerate(study.arms) if (arm.recipe, arm.runtime) == (recipe, runtime))


# Nothing is hidden


def test_every_arm_and_every_cause_is_in_every_format(study, page):
    shown = Document(page).words()
    texts = {"html": shown, "md": unescaped(markdown.page(study, {})), "csv": one_line(rows.to_csv(study)), "terminal": one_line(printed(study))}
    assert len(json.loads(rows.to_json(study))["arms"]) == len(study.arms) == 28
    for arm in study.arms:
        for kind, text in texts.items():
            assert arm.recipe in text, (kind, arm.id)
            assert arm.cause in text, (kind, arm.id)
        assert arm.id in texts["csv"]
        if arm.status != "done":
            assert arm.id in texts["md"]
            assert arm.id in texts["terminal"]
    linked = {parse_qs(a["href"][1:]).get("arm", [""])[0] for tag, a in Document(page).tags if tag == "a"}
    assert {arm.id for arm in study.arms} <= linked


def test_causes_stand_outside_anything_that_is_folded(study, page):
    plain = Document(page).words(without=("script", "style", "details"))
    for arm in study.arms:
        if arm.status != "done":
            assert plain.count(arm.cause) >= 2, arm.id  # in the table and in their own section


def test_an_arm_without_a_cause_still_says_so(study):
    index = index_of(study, "int16x8", "torch")
    pending = with_arm(with_arm(study, index, status="pending", cause=""), index + 1, status="failed", cause="")
    for text in (Document(whole(html.page(pending))).words(), markdown.page(pending, {}), printed(pending)):
        assert "the same command continues the study" in one_line(text)
        assert "no cause was recorded" in one_line(text)


# Emulated targets

NO_TIME = "it is emulated, and has no clock of its own"


@pytest.fixture(scope="module")
def mobile(study) -> Results:
    """The study's arms of LiteRT and ONNX Runtime, and the same arms on an emulated core: 40 million instructions for float32, a third for int8-dynamic."""
    here = [arm for arm in study.arms if arm.runtime in ("litert", "onnxruntime")]
    return replace(study, arms=tuple(here + [emulated(arm) for arm in here]))


def emulated(arm: Arm) -> Arm:
    there = {"id": arm.id.replace("/cpu", "/arm64:cortex-a76"), "target": "arm64:cortex-a76", "untimed": NO_TIME, "latency": None}
    if arm.status != "done":
        return replace(arm, **there)
    fewer = 3.0 if arm.recipe == "int8-dynamic" else 0.8 if arm.recipe == "int16x8" else 1.0
    total = round(40_000_000 / fewer)
    found = Instructions(total, total // 2, 0, 0, 0, total // 4, total // 20, 2, 0.0, fewer, "SDOT")
    equal = arm.recipe == "int8-dynamic"
    return replace(arm, **there, instructions=found, agreement=Agreement(32, 64, 0.0 if equal else 2e-5, 5.0, equal))


def test_an_emulated_arm_has_instructions_and_no_milliseconds_in_any_format(mobile):
    shown = Document(whole(html.page(mobile))).words()
    for text in (shown, unescaped(markdown.page(mobile, {})), one_line(printed(mobile, 140))):
        assert "13.3 M instructions" in text and "3.00× fewer" in text and "SDOT" in text
        assert "Fewest instructions with no measurable loss" in text
    for text in (shown, unescaped(markdown.page(mobile, {}))):
        assert (
            f"No latency on arm64:cortex-a76: {NO_TIME}." in text and "outputs bit-equal to this CPU's" in text and "outputs differ by 2.0e-05 at most" in text
        )
    for row in csv.DictReader(io.StringIO(rows.to_csv(mobile))):
        untimed = row["target"] != "cpu" and row["status"] == "done"
        assert bool(row["instructions_total"]) == untimed and (row["latency_median_ms"] == "" or not untimed)


def test_milliseconds_and_instructions_of_an_arm_stand_in_one_row(mobile):
    side = counts.beside(mobile)
    assert side.targets == ("cpu", "arm64:cortex-a76") and len(side.rows) == len(mobile.arms) // 2
    cells = {name: [counts.cost(arm) for arm in arms] for name, arms in side.rows}
    assert cells["int8-dynamic on LiteRT"][0].endswith(" ms") and cells["int8-dynamic on LiteRT"][1] == "13.3 M instructions"
    assert counts.gain(dict(side.rows)["int16x8 on LiteRT"][1]) == "1.25× as many, SDOT"
    assert cells["int16x8 on ONNX Runtime"] == ["refused", "refused"]


def test_a_study_without_emulated_arms_says_nothing_of_them(study, page):
    assert counts.beside(study) is None
    assert "On each target" not in page and "instructions" not in Document(page).words().lower() and "Side by side" not in markdown.page(study, {})


# The same numbers everywhere


def test_json_gives_the_results_back(study):
    document = json.loads(rows.to_json(study))
    assert document["schema_version"] == rows.SCHEMA_VERSION
    for arm in document["arms"]:
        if arm["size"]:
            arm["size"] = {{unit: name for name, unit in rows.SIZE_UNITS.items()}.get(key, key): value for key, value in arm["size"].items()}
    assert TypeAdapter(Results).validate_python(document) == study


def test_json_survives_numbers_that_are_not_finite(study):
    arm = study.arms[1]
    odd = with_arm(study, 1, size=replace(arm.size, ratio=float("inf")), latency=replace(arm.latency, load_ms=float("nan")))
    document = json.loads(rows.to_json(odd), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["arms"][1]["size"]["ratio"] is None
    html.page(odd)
    markdown.page(odd, {})


def test_csv_json_and_html_hold_equal_numbers(study, page):
    table = {row["id"]: row for row in csv.DictReader(io.StringIO(rows.to_csv(study)))}
    paths = {
        "file_bytes": ("size", "file_bytes"),
        "latency_median_ms": ("latency", "median_ms", "value"),
        "speedup": ("latency", "speedup", "value"),
        "memory_model_bytes": ("memory", "model_bytes"),
        "accuracy": ("accuracy", "value", "value"),
        "accuracy_difference": ("accuracy", "difference", "value"),
        "flipped": ("accuracy", "flipped"),
    }
    cells, current = {}, None
    for tag, attributes in Document(page).tags:
        current = attributes.get("data-id", current) if tag == "tr" else current
        if tag == "td" and attributes.get("data-sort") in paths and "data-v" in attributes:
            cells[current, attributes["data-sort"]] = float(attributes["data-v"])
    compared = 0
    for arm in json.loads(rows.to_json(study))["arms"]:
        for key, path in paths.items():
            value = arm
            for step in path:
                value = value and value[step]
            written = table[arm["id"]][key]
            assert (float(written) if written else None) == value == cells.get((arm["id"], key)), (arm["id"], key)
            compared += value is not None
    assert compared > 130


# Honesty


def test_a_simulated_arm_never_looks_small_or_fast(study):
    index = index_of(study, "int8-static", "torch")
    arm = study.arms[index]
    tempting = with_arm(
        study,
        index,
        size=replace(arm.size, file_bytes=1_000_000, ratio=90.6),
        latency=replace(arm.latency, median_ms=Estimate(1.0, 0.99, 1.01), speedup=Estimate(29.0, 28.0, 30.0), verdict="faster"),
        accuracy=replace(arm.accuracy, difference=Estimate(0.0, -0.01, 0.01), p=1.0, value=Estimate(0.99, 0.98, 1.0)),
    )
    liar = tempting.arms[index]
    chosen = [pick for one in reading.picks(tempting) for found in (one, *one.runtimes) for pick in (found.smallest, found.fastest) if pick]
    assert chosen
    assert all(pick.arm is not liar and liar not in pick.ties for pick in chosen)
    for chart in charts.charts(tempting):
        marks = [row for panel in chart.panels for row in panel.rows if row["id"] == liar.id]
        assert marks
        assert charts.facts(liar)["simulated"] and not any(row["front"] for row in marks)
    row = table_row(html.page(tempting), liar.id)
    assert 'class="strong"' not in row
    assert "smaller" not in row
    assert "simulated" in row
    assert "no speed result" in row
    assert "simulated, no speed result: 29.00×" in markdown.page(tempting, {})
    assert "simulated" in next(line for line in printed(tempting).splitlines() if "1.00 MB" in line)


def test_one_arm_that_is_far_off_does_not_flatten_the_chart(study):
    index = next(i for i, arm in enumerate(study.arms) if arm.recipe == "int4-group32" and arm.accuracy)
    lost = with_arm(study, index, accuracy=replace(study.arms[index].accuracy, value=Estimate(0.23, 0.21, 0.25)))
    for chart in charts.charts(lost):
        assert {arm.id for panel in chart.panels for arm in panel.outside} == {lost.arms[index].id}
        assert chart.y[0] > 60
    assert "Below the scale" in html.page(lost) and "Below the scale" not in html.page(study)


def test_names_in_a_chart_do_not_overlap(study):
    for chart in charts.charts(study):
        for panel in chart.panels:
            places = []
            for row in panel.rows:
                if row["named"]:
                    place, width = (
                        charts.share(row["x"], chart.x),
                        charts.LETTER * len(charts.facts(next(a for a in panel.arms if a.id == row["id"]))["recipe"]),
                    )
                    places.append((place - width, place) if place > charts.LEFT_EDGE else (place, place + width))
            assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(sorted(places)))
            assert not panel.front or any(row["named"] for row in panel.rows) or set(panel.front) <= set(panel.outside)


def test_the_fastest_arm_beats_float32_on_every_runtime(study):
    """Twice as fast as a slow runtime's float32 is not the fastest."""
    slow = [
        replace(a, latency=a.latency and replace(a.latency, median_ms=Estimate(*(100 * v for v in vars(a.latency.median_ms).values())))) for a in study.arms
    ]
    mixed = [new if new.runtime == "torch" else old for old, new in zip(study.arms, slow, strict=True) if new.runtime == "torch" or reading.is_baseline(old)]
    assert any(reading.counts_as_faster(arm) and reading.lossless(arm) for arm in mixed)
    assert reading.fastest(mixed) is None
    assert reading.fastest([arm for arm in mixed if arm.runtime == "torch"]) is not None


def table_row(page: str, arm_id: str) -> str:
    start = page.index(f'data-id="{arm_id}"')
    return page[start : page.index("</tr>", start)]


def test_no_difference_shown_is_never_an_achievement(study, page):
    unsure = [arm for arm in study.arms if arm.latency and arm.latency.verdict == "no difference shown" and not reading.is_simulated(arm)]
    assert unsure
    lines = markdown.page(study, {}).splitlines()
    for arm in unsure:
        row = table_row(page, arm.id)
        assert 'class="strong"' not in row
        assert '<span class="pair quiet-text"><span>' + words.times(arm.latency.speedup.value) in row
        assert words.interval(arm.latency.speedup, words.times) in row
        assert any(f"no difference shown: {words.times(arm.latency.speedup.value)}" in line for line in lines)
    assert all(arm not in unsure for one in reading.picks(study) for arm in [one.fastest.arm])


def test_picks_are_the_best_arms_without_a_loss(study):
    def fine(arm):
        difference, p = (arm.accuracy.difference, arm.accuracy.p) if arm.accuracy else (None, None)
        shown = difference is not None and (difference.high < 0 or (p < 0.05 and difference.value < 0))
        return difference is not None and not shown and not any(t.placement == "simulated" for t in arm.tensors)

    [found] = reading.picks(study)
    able = [arm for arm in study.arms if fine(arm)]
    assert found.smallest.arm.size.file_bytes == min(arm.size.file_bytes for arm in able)
    assert found.fastest.arm.latency.median_ms.value == min(arm.latency.median_ms.value for arm in able if arm.latency.verdict == "faster")
    quickest = min((arm for arm in study.arms if arm.latency), key=lambda arm: arm.latency.median_ms.value)
    assert reading.loss(quickest) == "loss"  # the fixture's fastest arm lost accuracy, so the law above means something


def test_without_a_baseline_nothing_is_recommended(study):
    unpaired = dict.fromkeys(("before", "difference", "p", "worse", "better", "flipped", "smallest", "holm_p"))
    lost = {"status": "failed", "cause": "out of memory", "size": None, "latency": None, "memory": None, "accuracy": None, "tensors": ()}
    arms = tuple(
        replace(
            arm,
            size=arm.size and replace(arm.size, ratio=None),
            latency=arm.latency and replace(arm.latency, speedup=None, verdict="no baseline"),
            accuracy=arm.accuracy and replace(arm.accuracy, **unpaired),
        )
        if arm.recipe != "float32"
        else replace(arm, **lost)
        for arm in study.arms
    )
    alone = replace(study, arms=arms)
    for text in (Document(whole(html.page(alone))).words(), markdown.page(alone, {}), one_line(printed(alone))):
        assert "out of memory" in text
        assert "faster than float32 without a measurable loss" in text
    assert all(one.smallest is None and one.fastest is None for one in reading.picks(alone))


def test_what_the_sample_could_not_have_seen_is_said(study, page):
    sentence = "This sample of 600 cannot see accuracy drops under 1.1 to 3.5 points"
    for text in (Document(page).words(), markdown.page(study, {}), one_line(printed(study))):
        assert sentence in text


def test_the_noise_floor_stands_beside_the_speedups(study, page):
    floor = words.reach(study.arms[0].latency.noise)
    assert "noise floor " + floor in table_row(page, study.arms[0].id)
    assert markdown.page(study, {}).count(floor) == printed(study).count(floor) == 4


def test_the_front_is_what_nothing_beats(study):
    for chart in charts.charts(study):
        for panel in chart.panels:
            marks = [charts.facts(arm) | row for arm, row in zip(panel.arms, panel.rows, strict=True)]
            real = [row for row in marks if not row["simulated"]]
            for row in marks:
                beaten = any(o["x"] <= row["x"] and o["y"] >= row["y"] and (o["x"], o["y"]) != (row["x"], row["y"]) for o in real)
                assert row["front"] == (not beaten and not row["simulated"]) or any(
                    o is not row and o["front"] and (o["x"], o["y"]) == (row["x"], row["y"]) for o in real
                ), row


def test_the_ledger_drawn_is_the_file(study):
    for arm in study.arms:
        if arm.size:
            assert sum(getattr(arm.size, key) for key, _ in html.LEDGER) == arm.size.file_bytes, arm.id


# One file, offline, small, harmless


def test_the_page_asks_nobody_for_anything(page):
    for tag, attributes in Document(page).tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or (tag, target) == ("link", "data:,"), (tag, attributes)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in Document(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_hostile_names_stay_text(study):
    index = index_of(study, "int8-dynamic", "litert")
    arm = study.arms[index]
    tensors = (replace(arm.tensors[0], name=HOSTILE, reason=HOSTILE), *arm.tensors[1:])
    names = dict.fromkeys(("id", "model", "recipe", "runtime", "exporter", "artifact"), HOSTILE)
    evil = with_arm(study, index, **names, tensors=tensors, notes=(HOSTILE,), operators={HOSTILE: 1})
    evil = with_arm(evil, index_of(study, "int16x8", "torch"), cause=HOSTILE, trace=HOSTILE, recipe=HOSTILE)
    evil = replace(evil, study=HOSTILE, command=HOSTILE, environment={HOSTILE: HOSTILE}, protocol={HOSTILE: HOSTILE})
    plain, attacked = Document(whole(html.page(study))), Document(whole(html.page(evil)))
    assert one_line(HOSTILE) in attacked.words()
    assert [tag for tag, _ in attacked.tags].count("img") == 0
    assert sum(tag == "script" for tag, _ in attacked.tags) == sum(tag == "script" for tag, _ in plain.tags) == 5
    assert not any(name.startswith("on") for _, attributes in attacked.tags for name in attributes)
    assert json.loads(rows.to_json(evil))["arms"][index]["recipe"] == HOSTILE
    assert {row["recipe"] for row in csv.DictReader(io.StringIO(rows.to_csv(evil)))} >= {HOSTILE}
    assert "[bold red]" in printed(evil)
    text = markdown.page(evil, {})
    outside_code = "".join(part for i, part in enumerate(text.replace("`` ", "\0").replace(" ``", "\0").split("\0")) if i % 2 == 0)
    assert "<script" not in outside_code
    assert "<img" not in outside_code
    widths = {len(line.replace("\\|", "").split("|")) for line in text.splitlines() if line.startswith("| ")}
    assert widths == {15, 7}  # 13 and 5 columns: no name breaks a row


def test_hostile_names_stay_text_in_the_images(study):
    index = index_of(study, "int8-dynamic", "litert")
    evil = with_arm(study, index, recipe=HOSTILE, runtime=HOSTILE)
    for chart in charts.charts(evil, charts.STILL):
        image = drawing.still(chart)
        assert "<script" not in image
        assert "<img" not in image
        assert "&lt;script&gt;" in image


def test_the_page_stays_small_and_says_what_it_left_out(study, page, monkeypatch):
    names = [f"blocks.{i}.{sha256(bytes([i % 256, i // 256])).hexdigest()}" for i in range(900)]  # nothing that could be packed well
    many = tuple(TensorRow(name, (64, 64 + i), "int8", "native", "", 64 * (64 + i), "int8 per-channel") for i, name in enumerate(names))
    large = with_arm(study, 0, tensors=many)
    whole_size = len(html.page(large).encode())
    assert names[0] in whole(html.page(large))
    monkeypatch.setattr(html, "LARGEST_BYTES", whole_size - 30_000)
    text = html.page(large)
    assert len(text.encode()) <= html.LARGEST_BYTES
    assert names[-1] in whole(text) and names[0] not in whole(text)  # the largest are kept
    assert "smaller ones, in results.json" in whole(text)
    assert "900 tensors" in whole(text)
    assert json.loads(rows.to_json(large))["arms"][0]["tensors"][0]["name"] == names[0]


# Two arms side by side, other tasks, and what is recommended


def test_every_number_of_an_arm_is_compared(study):
    """Whoever gives an arm another number names it in numbers.py, or here with a reason."""
    score = replace(study.arms[3].accuracy, worst=0.5, holm_p=0.5)
    counted = {"instructions": Instructions(9, 1, 1, 1, 1, 1, 1, 2, 0.1, 2.0, "SDOT"), "agreement": Agreement(2, 4, 0.1, 1.0, False)}
    other = replace(score, metric=replace(score.metric, title="top-5 accuracy"))
    elsewhere = {"estimated": Estimated(1.0, 0.1, "a phone"), "gpu": Gpu(1, 2, 3, 4, 5.0, 6.0)}
    arm = replace(study.arms[3], **counted, **elsewhere, accuracy=score, beside=(other,))
    shown = {one.path for group in numbers.numbers((arm,)).values() for one in group}
    apart = {"latency.block_medians_ms"}  # samples, which are on the arm's own page
    parts = {name: getattr(arm, name) for name in ("size", "latency", "memory", "accuracy", "gpu", "instructions", "estimated", "agreement")}
    found = {f"{name}.{field.name}" for name, part in parts.items() for field in fields(part)}
    said = {path for path in found if isinstance(reduce(getattr, path.split("."), arm), str | bool | Metric)}
    spread = {f"latency.percentiles_ms.{name}" for name in arm.latency.percentiles_ms}
    assert (found - apart - said - {"latency.percentiles_ms"}) | spread <= shown
    assert {path.replace("accuracy.", "beside.0.") for path in shown if path.startswith("accuracy.")} <= shown
    assert {f"seconds.{name}" for name in arm.seconds} | {f"operators.{name}" for name in arm.operators} <= shown


def measured_by(study: Results, metric: Metric, value) -> Results:
    """The study with another score: `value` of an arm's place in it."""

    def scored(place: int, arm: Arm) -> Arm:
        if arm.accuracy is None:
            return arm
        reached, plain = value(place), arm.recipe == "float32"
        change = None if plain or metric.kind == "likeness" else Estimate(0.02, -0.01, 0.05)
        paired = [None] * 6 if plain else [7.0, change, 0.4, 20, 10, 0.5]
        return replace(arm, accuracy=Score(metric, 50, Estimate(reached, reached - 0.1, reached + 0.1), *paired, None if plain else 0.04))

    return replace(study, arms=tuple(scored(i, arm) for i, arm in enumerate(study.arms)))


def test_another_task_is_called_by_its_name_and_judged_in_its_direction(study):
    perplexity = Metric("perplexity", "perplexity", higher_is_better=False, noun="document")
    found = measured_by(study, perplexity, lambda place: 10.0 - place % 7)
    shown = Document(whole(html.page(found))).words()
    assert "Perplexity against size" in shown and "7.000" in shown and "+2.00% [−1.00, +5.00]" in shown and "a rise under 4.00%" in shown
    assert shown.count("Accuracy") == 1 and " points" not in shown.replace("zero points", "")  # the protocol tells of accuracy, as it was given
    for chart in charts.charts(found):
        assert (chart.y[0], chart.y[1]) != (0, 100) and "Perplexity" in json.dumps(drawing.page_specification(chart))
        for panel in chart.panels:
            heights = [charts.height(arm).value for arm in panel.front]
            assert heights == sorted(heights, reverse=True)  # what costs more has to be better, that is lower


def test_a_likeness_without_bounds_is_drawn_where_it_is_finite(study):
    found = measured_by(study, Metric("SQNR", "likeness", "dB"), lambda place: float("inf") if place % 7 == 0 else 60.0 - place % 7)
    shown = Document(whole(html.page(found))).words()
    assert "SQNR, dB" in json.dumps([drawing.page_specification(chart) for chart in charts.charts(found)])
    assert "50.0% of the outputs differ" in shown and not any(arm.recipe == "float32" for chart in charts.charts(found) for arm in chart.arms)


def test_the_recommended_arm_is_small_not_slower_and_without_a_loss(study):
    found = recommending.advice(list(study.arms))
    able = [arm for arm in study.arms if reading.lossless(arm) and reading.counts_as_smaller(arm) and arm.latency.verdict != "slower"]
    assert found.arm in able and found.arm.latency.median_ms.low <= min(arm.latency.median_ms.high for arm in able)
    assert f"Of {len(able)} arms that are smaller than float32 and not slower" in found.why
    slow = [replace(arm, latency=replace(arm.latency, verdict="slower")) if arm in able else arm for arm in study.arms]
    assert "No arm is both smaller than float32 and as fast" in recommending.advice(slow).why
    assert recommending.advice([arm for arm in study.arms if arm.recipe == "float32"]) is None
    alone = [arm for arm in study.arms if arm not in able or arm is able[0]]
    assert recommending.advice(alone).why.startswith("The only arm")


def test_what_is_recommended_is_said_everywhere(study):
    (said,) = recommending.recommended(study)
    assert said.startswith("Recommended: ") and recommending.advice(list(study.arms)).why in said
    assert markdown.plain(said) in markdown.page(study, {})
    assert said in one_line(printed(study))
    (nothing,) = recommending.recommended(replace(study, arms=tuple(arm for arm in study.arms if arm.recipe == "float32")))
    assert nothing == f"Recommended: float32. {recommending.NOTHING_TO_GAIN}"
    two = replace(study, arms=(*study.arms, *(replace(arm, model="other") for arm in study.arms)))
    starts = [said.partition(":")[0] for said in recommending.recommended(two)]
    assert starts == [f"Recommended for {name} on this CPU" for name in (study.arms[0].model, "other")]


# Files


def test_report_writes_every_file_and_links_them(study, tmp_path):
    written = package.write_reports(study, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "report.md", "results.json", "results.csv", "charts"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for image in (tmp_path / "charts").iterdir():
        assert f"(charts/{image.name})" in text
        assert image.read_text(encoding="utf-8").startswith("<svg")
        assert image.stat().st_size < 150_000  # a pull request loads it at once
    assert all(path.is_file() for path in written.values())
    assert len(written) == 6


def test_two_models_get_their_own_words_and_images(study):
    other = tuple(replace(arm, model="digits", id=arm.id.replace("minilm", "digits")) for arm in study.arms)
    both = replace(study, arms=study.arms + other)
    drawn = charts.charts(both, charts.STILL)
    assert len(set(markdown.image_names(drawn))) == len(drawn) == 4
    assert {one.model for one in reading.picks(both)} == {"minilm", "digits"}
    shown = Document(html.page(both)).words()
    assert "digits: Accuracy against size" in shown
    assert shown.count("Smallest with no measurable loss") == 2


def test_an_empty_study_is_reported_as_empty(study, tmp_path):
    written = write_reports(replace(study, arms=()), tmp_path)
    assert "0 arms: 0 measured" in Document(written["html"].read_text(encoding="utf-8")).words()
    assert json.loads(written["json"].read_text(encoding="utf-8"))["arms"] == []
    assert "0 arms" in printed(replace(study, arms=()))


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    target = files.write(tmp_path / "results.json", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"cannot write .*results\.json.*No space left"):
        files.write(target, "new")
    assert target.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_cannot_be_written_is_named(study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write .*file"):
        write_reports(study, tmp_path / "file")


@pytest.mark.parametrize("width", [100, 110, 120])
def test_the_terminal_table_fits(study, width):
    lines = printed(study, width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_numbers_carry_their_unit_and_their_size():
    assert [words.megabytes(n) for n in (0, 768, 93_696, 23_000_000, 1_234_000_000)] == ["0 MB", "0.768 kB", "93.7 kB", "23.0 MB", "1,234 MB"]
    assert [words.milliseconds(n) for n in (0.01234, 9.916, 31.02, 8412.0)] == ["0.0123 ms", "9.92 ms", "31.0 ms", "8,412 ms"]
    assert [words.points(n) for n in (-0.0267, 0.0017, 0.0, -0.0001)] == ["−2.7", "+0.2", "0.0", "0.0"]
    assert words.p_value(0.0000001) == "< 0.001"
    assert words.interval(Estimate(2.0, 1.9, 2.1), words.times) == "[1.90, 2.10]"


def test_every_built_in_recipe_looks_different_in_charts():
    assert len(set(drawing.LOOKS[: len(built_in())])) == len(built_in())


def test_what_an_arm_takes_of_a_gpu_and_what_a_device_would_take_are_shown():
    found = results()
    gpu, unread = Gpu(23_400_000, 46_000_000, 800_000_000, 500_000_000, 120.5, 31.2), Gpu(None, None, None, None, None, None)
    arms = replace(found.arms[0], gpu=gpu), replace(found.arms[1], gpu=unread), replace(found.arms[2], estimated=Estimated(12.3, 1.5, "ssh:pi@board"))
    page = whole(html.page(replace(found, arms=(*arms, *found.arms[3:]))))
    assert all(words in page for words in ("23.4 MB at the peak", "120 W", "31.2 mJ for one inference", "this card has no energy counter"))
    assert rows.flat(arms[0])["gpu_millijoules"] == 31.2 and rows.flat(arms[1])["gpu_allocated_bytes"] is None
    assert counts.in_short(arms[2]).endswith("about 12.3 ms ± 1.5 (calibrated on ssh:pi@board)")
