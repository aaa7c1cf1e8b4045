"""The site is whole: it builds without a warning, loads nothing from another host, and has the command line and schemas of the code."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import pytest

pytest.importorskip("material", reason="the site needs extra docs")
from compress.__main__ import app
from compress.commands.schemas import Document, json_schema

ROOT = Path(__file__).parents[1]
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


class Loaded(HTMLParser):
    """What a page loads, links left out."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in LOADS and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(found.get(LOADS[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert made.returncode == 0, made.stderr
    return out


def test_nothing_comes_from_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not [url for url in Loaded(text).loaded if urlparse(url).netloc], page
        assert 'class="mermaid"' not in text, f"{page}: Material loads mermaid from a CDN; draw an SVG"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_word_can_be_searched_for(site):
    places = {entry["location"].partition("#")[0] for entry in json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index", "gpu"} <= {place.strip("/") for place in places}


def test_schemas_are_published(site):
    for name in Document:
        assert json.loads((site / f"schemas/{name}.json").read_text(encoding="utf-8")) == json_schema(name)


def test_the_command_line_is_the_application(site):
    page = (site / "cli/index.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"compresskit {command.name or command.callback.__name__}</code>" in page


def test_the_reference_has_signatures_and_lists(site):
    page = (site / "api/index.html").read_text(encoding="utf-8")
    assert "calibration" in page and "<li><code>allow_float</code>" in re.sub(r"<p>|</p>", "", page).replace("<li>\n", "<li>")
