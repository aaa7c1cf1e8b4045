"""docs/lora.md: its blocks run in order, and both ways reach the same result."""

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.finetune import lora

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/lora.md").read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's blocks leave behind."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(ROOT / "examples/sentiment")
    patch.chdir(tmp_path_factory.mktemp("page"))
    names = {}
    for block in BLOCKS:
        exec(compile(block, "docs/lora.md", "exec"), names)
    patch.undo()
    for name in ("data", "model"):  # other examples have files of these names
        del sys.modules[name]
    return names


def test_both_ways_reach_the_same_result(page):
    assert page["STEPS"] == len(page["losses_by_hand"]) == len(page["losses_by_peft"])
    assert np.allclose(page["losses_by_hand"], page["losses_by_peft"], atol=1e-4)
    assert (page["logits"](page["by_hand"]).argmax(1) == page["logits"](page["by_peft"]).argmax(1)).all()
    assert np.ptp(page["losses_by_hand"]) > 0.01


def test_the_page_shows_the_code_that_is_used():
    for shown in (lora.LoRALayer, lora.LinearWithLoRA):
        assert any(inspect.getsource(shown) in f"{block}\n" for block in BLOCKS)


def test_the_page_counts_right(page):
    assert page["learns"] == 332_546 and sum(p.numel() for p in page["by_hand"].parameters()) == 22_897_922
    assert page["tuned"].scores.shape == page["qlora"].scores.shape == (page["REVIEWS"],)
