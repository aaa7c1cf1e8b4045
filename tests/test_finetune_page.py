"""docs/lora.md: its blocks run in order, and both ways reach the same result."""

import inspect

import numpy as np
import pages
import pytest

from compress.finetune import lora

PAGE = pages.ROOT / "docs/lora.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's blocks leave behind."""
    return pages.run(PAGE, tmp_path_factory.mktemp("page"), "examples/sentiment")


def test_both_ways_reach_the_same_result(page):
    assert page["STEPS"] == len(page["losses_by_hand"]) == len(page["losses_by_peft"])
    assert np.allclose(page["losses_by_hand"], page["losses_by_peft"], atol=1e-4)
    assert (page["logits"](page["by_hand"]).argmax(1) == page["logits"](page["by_peft"]).argmax(1)).all()
    assert np.ptp(page["losses_by_hand"]) > 0.01


def test_the_page_shows_the_code_that_is_used():
    for shown in (lora.LoRALayer, lora.LinearWithLoRA):
        assert any(inspect.getsource(shown) in f"{block.text}\n" for block in pages.blocks(PAGE))


def test_the_page_counts_right(page):
    assert page["learns"] == 332_546 and sum(p.numel() for p in page["by_hand"].parameters()) == 22_897_922
    assert page["tuned"].scores.shape == page["qlora"].scores.shape == (page["REVIEWS"],)
