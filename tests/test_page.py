"""report.html in a real Chromium: every control does what it says, nothing is fetched, and everyone can read it."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest

pytest.importorskip("playwright", reason="the page's tests need playwright and axe-playwright-python")
from results_fixture import results

from evaluators.report import html, reading
from evaluators.results import Arm, Layer, OperatorRow, Results

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome is installed")
HOSTILE = "<img src=https://evil.example/x onerror=alert(1)>\"'&\\</script>"
FIRST, SECOND = "minilm/int8-static/onnxruntime/cpu", "minilm/float32/onnxruntime/cpu"
SIMULATED, FAILED = "minilm/int8-static/torch/cpu", "minilm/int4-group32/torch-compiled/cpu"


def explained(arm: Arm) -> Arm:
    """The arm as `explain` leaves it; its output breaks at the fourth layer."""
    layers = tuple(Layer(f"layer{i}.dense", 40.0 - i, 20.0 - 4 * i, 35.0 if i else None) for i in range(6))
    times = (
        OperatorRow("MatMul", "MLAS", 38, 5.0, 38, 18.0),
        OperatorRow("QuantizeLinear", "CPU", 26, 1.5, 0, 0.0),
        OperatorRow("Gelu", "CPU", 0, 0.0, 6, 1.0),
    )
    return replace(arm, layers=layers, operator_times=times, causes=("26 quantize operators take 1.5 ms that float32 does not spend",))


@pytest.fixture(scope="module")
def study() -> Results:
    found = results()
    return replace(found, arms=tuple(explained(arm) if arm.id == FIRST else arm for arm in found.arms))


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    return written(study, tmp_path_factory.mktemp("page") / "report.html")


def written(study: Results, path):
    path.write_text(html.page(study), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Watched:
    """A page, and what it wrote to its console and asked for."""

    def __init__(self, browser, width: int = 1440, **settings):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **settings)
        self.context.set_default_timeout(20_000)
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url.partition(":")[0]))

    def check(self):
        assert self.said == []
        assert set(self.asked) <= {"file", "data"}


@pytest.fixture
def visit(browser):
    """Opens a file in a browser of its own, which at the end has said nothing and asked for nothing but files."""
    opened = []

    def visited(file, fragment: str = "", **settings):
        opened.append(Watched(browser, **settings))
        opened[-1].page.goto(file.as_uri() + fragment)
        return opened[-1].page

    yield visited
    for one in opened:
        one.context.close()
        one.check()


@pytest.fixture(scope="module")
def opened(browser, file):
    found = Watched(browser)
    found.page.goto(file.as_uri())
    yield found
    found.context.close()


@pytest.fixture
def page(opened, file):
    """The study's page as it is at first: its state is its address, so one loaded page serves many tests."""
    opened.page.goto(file.as_uri() + "#")
    yield opened.page
    opened.check()


def shown(page) -> list[str]:
    return page.eval_on_selector_all("#table tbody tr:not([hidden])", "rows => rows.map(row => row.dataset.id)")


def settled(page):
    """The page with its charts drawn."""
    page.wait_for_selector("html[data-charts]")
    return page


# Every control


def test_no_control_is_without_a_test(page):
    """Buttons, inputs and lists of the page; who adds one adds a test of what it does."""
    controls = page.eval_on_selector_all("button, input, select, textarea", "all => all.map(one => one.id || one.name || one.parentElement.dataset.sort)")
    heads = {"recipe", "runtime", "file_bytes", "latency_median_ms", "speedup", "memory_model_bytes", "accuracy", "accuracy_difference", "flipped", "weights"}
    assert set(controls) == heads | {"theme", "axis", "find", "lossless", "reset", "pair", "compare-now", "compare-none", "left", "right", "swap"}


def test_every_column_sorts_up_and_down_and_back(page, study):
    given = [arm.id for arm in study.arms]
    for head in page.query_selector_all("#table thead th[data-sort]"):
        key, button = head.get_attribute("data-sort"), head.query_selector("button")
        read = f"rows => rows.map(row => row.querySelector('[data-sort={key}]')?.dataset.v ?? null)"
        for direction in ("ascending", "descending"):
            button.click()
            assert head.get_attribute("aria-sort") == direction
            values = page.eval_on_selector_all("#table tbody tr", read)
            known = [value for value in values if value is not None]
            assert values == known + [None] * (len(values) - len(known)), key
            numbers = [float(value) for value in known if re.fullmatch(r"-?[\d.]+(e-?\d+)?", value)]
            assert len(numbers) in (0, len(known)) and len(set(known)) > 1
            ordered = pairwise(numbers or [value.lower() for value in known])
            assert all(a <= b if direction == "ascending" else a >= b for a, b in ordered) or key in ("recipe", "weights"), (key, known)  # these hold numbers
        button.click()
        assert head.get_attribute("aria-sort") == "none" and shown(page) == given


def test_filters_hide_what_they_say_and_are_counted(page, study):
    page.fill("#find", "ONNX int8")
    assert set(shown(page)) == {arm.id for arm in study.arms if arm.runtime == "onnxruntime" and "int8" in arm.recipe + arm.cause}
    assert page.text_content("#shown") == f"{len(shown(page))} of 28 arms"
    page.fill("#find", "nothing is called this")
    assert shown(page) == [] and page.is_visible("#nothing")
    page.click("#reset")
    assert len(shown(page)) == 28 and not page.is_visible("#reset") and page.input_value("#find") == ""
    for box in page.query_selector_all("#arms input[name=runtime]"):
        box.click()
        assert shown(page) == [arm.id for arm in study.arms if arm.runtime != box.get_attribute("value")]
        box.click()
        assert len(shown(page)) == 28
    page.click("#lossless")
    assert shown(page) == [arm.id for arm in study.arms if reading.lossless(arm)]


def test_facets_of_models_and_targets_are_there_where_there_are_several(study, visit, tmp_path):
    arms = [replace(arm, model=model, target=target, id=f"{model}/{arm.recipe}/{arm.runtime}/{target}") for arm in study.arms[:7] for model, target in
            (("a", "cpu"), ("b", "cpu"), ("a", "cuda:0"))]  # fmt: skip
    page = visit(written(replace(study, arms=tuple(arms)), tmp_path / "several.html"))
    page.click('#arms input[name=model][value="b"]')
    page.click('#arms input[name=target][value="cpu"]')
    assert len(shown(page)) == 7 and all(name.startswith("a/") and name.endswith("/cuda:0") for name in shown(page))
    assert page.locator(".pick.main").count() == 3
    settled(page)
    assert page.locator(".chart:visible").count() == 3


def test_every_axis_shows_its_charts_with_a_mark_for_every_arm(page, study):
    settled(page)
    done = sum(arm.status == "done" for arm in study.arms)
    for axis in ("latency", "memory", "bits", "size"):
        page.locator(f"input[name=axis][value={axis}]").check(force=True)
        assert page.eval_on_selector_all(".chart:not([hidden])", "all => all.map(one => one.dataset.axis)") == [axis]
        page.wait_for_function(f"document.querySelectorAll('.chart:not([hidden]) svg .mark-symbol path').length == {done}")
    assert page.get_attribute("html", "data-charts") == "4"


def test_a_mark_tells_its_arm_and_opens_it(page, study):
    settled(page)
    mark = page.locator(".chart:not([hidden]) .view").nth(1).locator(".mark-symbol path").nth(0)
    mark.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    said = page.text_content("#vg-tooltip-element")
    mark.click(force=True)
    name = page.text_content("#arm h2")
    assert " ".join(name.split()) in said and page.url.count("view=arm") == 1


def test_every_arm_opens_by_its_link_and_back_returns_to_the_table(page, file, study):
    page.goto(file.as_uri() + "#find=int8&sort=speedup")
    names = shown(page)
    assert len(names) == 15
    titles = {arm.id: reading.label(arm) for arm in study.arms}
    for name in names:
        page.click(f'tr[data-id="{name}"] th a')
        page.wait_for_selector("#arm-title:focus")
        assert page.inner_text("#arm-title") == titles[name] and not page.is_visible("#summary")
        page.go_back()
        assert page.is_visible("#summary") and shown(page) == names
    page.click(f'tr[data-id="{names[0]}"] th a')
    page.click("#arm .crumb a")
    assert page.is_visible("#summary") and shown(page) == names


def test_an_arm_shows_all_that_is_known_of_it(page, file):
    page.goto(file.as_uri() + f"#view=arm&arm={FIRST}")
    words = " ".join(page.inner_text("#arm").split())
    assert "26 quantize operators take 1.5 ms that float32 does not spend" in words
    assert "layer3.dense breaks here" in words and "layer3.dense is the first layer whose output has less than 10 dB" in words
    assert "QuantizeLinear CPU added" in words and "Gelu CPU gone" in words
    assert f"compresskit compare examples/sentiment/study.yaml --arm {FIRST} --out again" in words
    assert "Where it ran" in page.inner_text("#method") and "Intel Xeon Platinum 8481C" in page.inner_text("#method")
    assert page.locator("#arm .mark.output").count() == 1 + 6 and page.locator("#arm .twin").count() == 3
    for plan in page.query_selector_all("#arm details.fate"):
        plan.query_selector("summary").click()
        assert plan.query_selector("table").is_visible()
    page.click("#arm .actions a")
    assert [page.input_value("#left"), page.input_value("#right")] == [FIRST, SECOND]
    page.goto(page.url.split("#")[0] + "#view=arm&arm=minilm/float16/litert/cpu")
    assert "compresskit explain report minilm/float16/litert/cpu" in page.inner_text("#arm")


def test_two_arms_are_chosen_and_compared_number_by_number(page, file, study):
    boxes = [f'input[name=pair][value="{name}"]' for name in ("minilm/int4-group32/torch/cpu", FIRST, SECOND)]
    page.click(boxes[0])
    assert "choose another" in page.inner_text("#tray p") and page.is_disabled("#compare-now")
    page.click(boxes[1])
    page.click(boxes[2])  # takes the place of the first
    assert page.inner_text("#tray p") == "int8-static on ONNX Runtime and float32 on ONNX Runtime" and not page.is_checked(boxes[0])
    page.click("#compare-now")
    read = page.eval_on_selector_all("#pairs tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    table = {row[0]: row[1:] for row in reversed(read) if len(row) == 4}  # of equal names the first: accuracy has a value, and took its time
    one, other = (next(arm for arm in study.arms if arm.id == name) for name in (FIRST, SECOND))
    assert table["Size"] == ["23.0 MB", "90.4 MB", "+67.4 MB, 3.93×"]
    assert table["Correct"] == ["505", "521", "+16, 1.03×"] and table["Accuracy"][2] == "+2.67 points"
    assert table["Threads"] == ["2", "2", "equal"] and table["Now worse"] == ["27", "–", "–"]
    page.click("#swap")
    assert page.locator("#pairs tr", has_text="Deflated").inner_text().endswith(f"−{(other.size.deflated_bytes - one.size.deflated_bytes) / 1e6:.1f} MB, 0.25×")
    page.select_option("#right", "minilm/int16x8/torch/cpu")
    assert "refused" in page.inner_text("#sides") and "int16x8 on PyTorch eager" in page.inner_text("#pairs thead")
    page.select_option("#left", "minilm/float16/litert/cpu")
    page.click("#pairs thead a >> nth=0")
    assert page.inner_text("#arm h2") == "float16 on LiteRT"
    page.goto(file.as_uri() + f"#pair={FIRST}")
    page.click("#compare-none")
    assert not page.is_visible("#tray") and "pair" not in page.url


def test_every_section_is_reached_and_leaves_the_state_alone(page, file):
    page.goto(file.as_uri() + "#find=int8")
    for link in page.query_selector_all("nav.sections a, .callout a"):
        place = link.get_attribute("href")
        link.click()
        assert page.evaluate(f"document.querySelector('{place}').getBoundingClientRect().top < innerHeight") and page.url.endswith("#find=int8")


def test_the_theme_goes_round_and_lasts(file, visit):
    page = visit(file, color_scheme="light")
    paint = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for _ in range(3):
        seen.append((page.inner_text("#theme"), page.evaluate(paint)))
        page.click("#theme")
    assert [name for name, _ in seen] == ["Theme: system", "Theme: light", "Theme: dark"]
    assert seen[0][1] == seen[1][1] != seen[2][1]
    page.click("#theme")
    page.click("#theme")
    page.reload()
    assert page.inner_text("#theme") == "Theme: dark" and page.evaluate(paint) == seen[2][1]


# The address


def test_the_address_restores_everything(page, file, visit):
    page.fill("#find", "minilm")
    page.click("#lossless")
    page.click('#arms input[name=runtime][value="torch"]')
    page.click("#table th[data-sort=file_bytes] button")
    page.click("#table th[data-sort=file_bytes] button")
    page.locator("input[name=axis][value=bits]").check(force=True)
    page.click("#table tbody tr:not([hidden]) input[name=pair] >> nth=0")
    there = visit(file, page.url[page.url.index("#") :])
    for look in (page, there):
        assert look.input_value("#find") == "minilm" and look.is_checked("#lossless") and look.is_checked("input[name=axis][value=bits]")
        assert not look.is_checked('#arms input[name=runtime][value="torch"]') and look.locator("input[name=pair]:checked").count() == 1
        assert look.get_attribute("#table th[data-sort=file_bytes]", "aria-sort") == "descending"
    assert shown(there) == shown(page) and 0 < len(shown(page)) < 20


def test_an_address_that_names_nothing_shows_the_overview(page, file):
    for fragment in ("#view=arm&arm=gone", "#view=nowhere&sort=nothing&axis=none", "#%E0%A4%A", "#charts"):
        page.goto(file.as_uri() + fragment)
        assert page.is_visible("#summary") and len(shown(page)) == 28


# For everyone


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(study, visit, tmp_path, scheme):
    from axe_playwright_python.sync_playwright import Axe

    kinds = [FIRST, SECOND, SIMULATED, FAILED, "minilm/int16x8/torch/cpu", "minilm/int8-dynamic/onnxruntime/cpu", "minilm/float32/torch/cpu"]
    few = written(replace(study, arms=tuple(arm for arm in study.arms if arm.id in kinds)), tmp_path / "few.html")
    page = settled(visit(few, color_scheme=scheme))
    options = {"resultTypes": ["violations"]} | ({"runOnly": ["color-contrast"]} if scheme == "dark" else {})
    failed = [f"#view=arm&arm={FAILED}"] * (scheme == "light")
    for fragment in (f"#pair={FIRST}", f"#view=arm&arm={FIRST}", *failed, f"#view=compare&pair={FIRST}&pair={SECOND}"):
        page.goto(few.as_uri() + fragment)
        if "arm=" in fragment:
            page.wait_for_selector("#arm-title:focus")
        found = Axe().run(page, options=options)
        assert found.violations_count == 0, (fragment, found.generate_report())


FOCUSED = """() => {
  const one = document.activeElement, near = [one, one.parentElement, one.nextElementSibling].filter(Boolean);
  if (one === document.body) return null;
  one.dataset.reached ??= Math.random();
  const ring = near.some((it) => getComputedStyle(it).outlineStyle === "solid");
  return [one.dataset.reached, one.matches("a[href], button, input, select, summary"), ring, one.outerHTML.slice(0, 120)];
}"""


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(file, visit):
    page = settled(visit(file, f"#pair={FIRST}&find=int8"))
    reachable = "all => all.filter(one => one.checkVisibility() && !one.disabled && (one.type !== 'radio' || one.checked)).length"
    wanted = page.eval_on_selector_all("a[href], button, input, select, summary", reachable)
    seen = []
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found is None:
            break
        assert found[2], found[3]
        seen += [found[0]] * found[1]
    assert len(set(seen)) == wanted


@pytest.mark.parametrize("width", [390, 820])
def test_nothing_is_wider_than_the_screen(file, visit, width):
    page = settled(visit(file, width=width))
    for fragment in ("", f"#view=arm&arm={FIRST}", f"#view=compare&pair={FIRST}&pair={SECOND}"):
        page.goto(file.as_uri() + fragment)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, fragment


def test_on_paper_it_is_light_whole_and_without_controls(file, visit):
    page = settled(visit(file, color_scheme="dark"))
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.eval_on_selector_all("button, input", "all => all.filter(one => one.checkVisibility()).length") == len(
        page.query_selector_all("#table thead button")
    )
    assert page.is_visible("#summary") and page.is_visible("#missing") and page.locator("#table tbody tr:visible").count() == 28


def test_without_scripts_the_table_and_every_cause_can_be_read(file, visit, study):
    page = visit(file, java_script_enabled=False)
    assert page.locator("#table tbody tr:visible").count() == len(study.arms) and "need JavaScript" in page.inner_text("main")
    assert page.locator("button:visible").count() == len(page.query_selector_all("#table thead button"))
    assert all(arm.cause in page.inner_text("#missing") for arm in study.arms)


# Odd studies


def test_hostile_names_stay_text_in_every_view(study, visit, tmp_path):
    names = dict.fromkeys(("id", "model", "recipe", "runtime", "exporter"), HOSTILE)
    evil = replace(study, study=HOSTILE, arms=(*study.arms[:3], replace(study.arms[3], **names, operators={HOSTILE: 1})))
    page = settled(visit(written(evil, tmp_path / "evil.html")))
    page.click("#table tbody tr >> nth=3 >> th a")
    assert HOSTILE in page.inner_text("#arm h2")
    page.goto(page.url.split("#")[0] + "#view=compare")
    page.select_option("#right", HOSTILE)
    assert HOSTILE in page.inner_text("#pairs thead") and page.locator("img").count() == 0


def test_an_empty_study_opens(study, visit, tmp_path):
    page = visit(written(replace(study, arms=()), tmp_path / "empty.html"), "#view=compare")
    assert page.is_visible("#compare")
    page.click("#compare .crumb a")
    assert "0 arms" in page.inner_text("#summary") and page.text_content("#shown") == "0 arms"


def test_two_hundred_arms_fit_into_three_megabytes_and_work(study, visit, tmp_path):
    done = [arm for arm in study.arms if arm.status == "done"]
    arms = tuple(explained(replace(done[i % len(done)], recipe=f"mixed-{i}", id=f"minilm/mixed-{i}/{done[i % len(done)].runtime}/cpu")) for i in range(200))
    many = written(replace(study, arms=arms), tmp_path / "many.html")
    assert many.stat().st_size <= html.LARGEST_BYTES
    page = settled(visit(many))
    page.fill("#find", "mixed-19")
    assert len(shown(page)) == 11
    page.click("#table tbody tr:not([hidden]) th a >> nth=0")
    assert page.inner_text("#arm h2").startswith("mixed-19")
