"""README and docs say what is so: their Python runs, their commands exist and print what is shown, and whatever is registered is named."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

pytest.importorskip("torch")
import pages
from pages import PAGES, ROOT, blocks, commands, typed

import compress
import evaluators
from benchmarks.__main__ import BENCHMARKS
from compress import finetune, formats, sparsity
from compress.backends import BACKENDS
from compress.finetune.methods import NAMED
from compress.network import COMPRESSIBLE
from compress.numerics import clustering
from compress.numerics.codebooks import TABLES
from compress.presets import PRESETS, bits_per_weight
from compress.recipe import Recipe, built_in
from compress.steps import Cluster, Prune, Quantize
from compress.training import Budget, Distillation
from evaluators.runtimes import RUNTIMES
from evaluators.targets import TARGETS
from exporters import EXPORTERS

OWN_TEST = {"lora.md": "test_finetune_page.py"}
WITH_OUTPUT = ("quickstart.md", "troubleshooting.md")  # in this order, in one folder: the second begins with what the first wrote
PYTHON = [page for page in PAGES if page.name not in (*OWN_TEST, *WITH_OUTPUT) and any(b.language == "python" for b in blocks(page))]


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_runs(page, tmp_path):
    assert pages.run(page, tmp_path)


@pytest.mark.slow
def test_commands_print_what_is_shown(tmp_path):
    for name in WITH_OUTPUT:
        pages.run(ROOT / "docs" / name, tmp_path, console=lambda command, shown: compare(command, shown))


def compare(command: str, shown: str) -> None:
    program, *words = command.split("#")[0].replace("'", "").split()
    assert program == "compresskit", command
    found = typed(words)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(shown, found, flags), f"$ {command}\n{found}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    parser = pages.application()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong = []
    for line, (program, *words) in commands(page):
        if program == "make":
            wrong += [f"{page.name}:{line}: no target {word}" for word in words if word not in targets]
        elif program == "python":
            wrong += [f"{page.name}:{line}: no benchmark {word}" for word in words[2:] if word not in BENCHMARKS]
        elif program == "compresskit":
            try:
                parser([word for word in words if word != "--debug"], standalone_mode=False)
            except Exception as error:
                if "does not exist" not in str(error):  # a file of the reader's
                    wrong.append(f"{page.name}:{line}: compresskit {' '.join(words)}: {error}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_that_do_not_run_say_why(page):
    for block in blocks(page):
        first = block.text.partition("\n")[0]
        assert not block.skipped or len(first) > len(pages.NOT_RUN) + 10, first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_means_something(page):
    for block in blocks(page):
        document = yaml.safe_load(block.text) if block.language == "yaml" else None
        if isinstance(document, dict) and "steps" in document:
            Recipe.model_validate({"name": "unnamed"} | document)


def test_diffs_apply_and_work(tmp_path):
    for package in ("compress", "exporters", "evaluators"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shown = blocks(ROOT / "docs/extending.md")
    changes = "".join(block.text for block in shown if block.language == "diff")
    subprocess.run(["git", "apply", "--verbose", "-"], input=changes, cwd=tmp_path, text=True, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": "/"})
    for block in shown:
        if block.text.startswith(pages.IN_COPY):
            (tmp_path / "work.py").write_text(block.text)
            subprocess.run([sys.executable, "work.py"], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})


def missing(name: str, wanted) -> list[str]:
    return [one for one in wanted if one not in text(name)]


def quoted(names) -> list[str]:
    return [f"`{name}`" for name in names]


def test_every_number_format_is_on_its_page():
    rows = [f"| `{name}` | {p.format} | {bits_per_weight(p.format):.3f} | {p.users} |" for name, p in PRESETS.items()]
    assert not missing("formats.md", rows)
    words = [*TABLES]
    for choice in ("ScaleRule", "Fit", "ZeroPoint", "Rounding", "Division", "CodesFrom", "ScaleDtype", "SmallScale", "Scaling"):
        words += get_args(getattr(formats, choice))
    words += get_args(formats.DoubleQuantized.__dataclass_fields__["kind"].type)
    words += get_args(formats.StaticActivations.__dataclass_fields__["method"].type)
    words += [field.name for field in (*fields(formats.IntFormat), *fields(formats.CodebookFormat)) if field.name not in ("type", "percentile")]
    assert not missing("formats.md", quoted(dict.fromkeys(words)))


def test_every_step_and_recipe_is_on_its_page():
    assert not missing("steps.md", [f"| `{name}` | {Recipe.load(name).about} |" for name in built_in()])
    steps = get_args(get_args(compress.steps.Step)[0])
    assert not missing("steps.md", [f"## {step.model_fields['step'].default}\n" for step in steps])
    words = [name for step in steps for name in step.model_fields if name not in ("step", "select")]
    words += [*Budget.model_fields, *COMPRESSIBLE, *get_args(sparsity.Saliency), *get_args(clustering.Initialization)]
    words += get_args(sparsity.Schedule.__dataclass_fields__["type"].type)
    assert not missing("steps.md", quoted(words))
    patterns = [pattern.__dataclass_fields__["type"].default for pattern in get_args(sparsity.Pattern)]
    assert not [name for name in (*patterns, *Distillation.model_fields) if name not in text("steps.md")]
    assert {Prune, Cluster, Quantize} <= set(steps)


@pytest.mark.parametrize("registry", [EXPORTERS, RUNTIMES, BACKENDS], ids=lambda registry: registry.noun)
def test_what_is_registered_is_named_with_what_it_does(registry):
    assert not missing("files.md", [f"| `{name}` | {entry.about} |" for name, entry in registry.entries.items()])
    assert not missing("files.md", quoted(registry.aliases))


def test_every_kind_of_target_is_on_its_page():
    assert not [kind for kind in TARGETS if f"`{kind}" not in text("targets.md") and f"kind: {kind}" not in text("targets.md")]


def test_every_method_of_fine_tuning_is_on_its_page():
    assert not missing("lora.md", quoted(NAMED))


def test_every_public_name_is_in_the_reference():
    public = {**compress.PUBLIC, **evaluators.PUBLIC, **{name: f"compress.finetune.{module}" for name, module in finetune.WHERE.items()}}
    shown = re.findall(r"^::: (\S+)$", text("api.md"), re.M)
    assert not [name for name in (*public, "export", "inspect") if not any(full.endswith(f".{name}") for full in shown)]


def test_the_workflow_is_one():
    (block,) = [block for block in blocks(ROOT / "docs/ci.md") if block.language == "yaml"]
    workflow = yaml.load(block.text, yaml.BaseLoader)  # `on` stays a word
    assert set(workflow) == {"name", "on", "permissions", "jobs"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    ours = [words for _, words in commands(ROOT / "docs/ci.md") if words[:2] == ["compresskit", "check"]]
    assert any("--junit" in words for words in ours)


def test_the_library_to_conform_to_is_shown_as_it_is():
    assert Path(ROOT / "compress/conformance/peers/half_quadratic.py").read_text() in text("extending.md")
