"""Everything that needs an NVIDIA GPU, once: `python -m benchmarks.gpu_check --out FOLDER --page PAGE.md`. Exit code 2 at once where there is none."""

import argparse
import subprocess
import sys
from pathlib import Path

import evaluators
from compress import __version__
from compress.errors import Unreachable
from evaluators.report import words
from evaluators.report.markdown import accuracy_cells, latency_cells, missing, plain, size_cells, table, weights
from evaluators.results import Arm, Results
from evaluators.store import now
from evaluators.targets import Target, open_target
from evaluators.worker import Outcome

ROOT = Path(__file__).parents[1]
STUDIES = ("examples/sentiment/study-gpu.yaml", "examples/language_model/study-gpu.yaml")
LIMIT = 1800
HEAD = ["Recipe", "Runtime", "Size", "Ratio", "Latency, ms", "Against float32", "Memory", "Energy", "Accuracy", "Difference", "p", "Flipped", "Weights"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for the studies; a rerun continues there")
    parser.add_argument("--page", type=Path, default=Path("docs/gpu.md"), help="where the measured table goes")
    given = parser.parse_args()
    target = open_target(given.device)
    try:
        target.check()
    except Unreachable as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    print(f"conformance on {given.device} ...", file=sys.stderr, flush=True)
    with target.start(1) as worker:
        numbers = worker.call("compress.conformance.on_device:check", given.device, limit=LIMIT)
    results = [studied(Path(study), given.out, given.device) for study in STUDIES]
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], cwd=ROOT, capture_output=True, text=True)
    print(tests.stdout, tests.stderr, sep="\n", file=sys.stderr)
    text = page(target, numbers, results, tests)
    fresh = given.page.with_suffix(".tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(given.page)
    print(text)
    failed = any(arm.status == "failed" for found in results for arm in found.arms)
    return 1 if failed or tests.returncode or numbers.status != "done" or any(row.different for row in numbers.value) else 0


def studied(study: Path, out: Path, device: str) -> Results:
    folder = out / study.parent.name
    results = evaluators.compare(ROOT / study, folder, targets=[device])
    evaluators.write_reports(results, folder)
    return results


def page(target: Target, numbers: Outcome, results: list[Results], tests: subprocess.CompletedProcess) -> str:
    where = [f"- **{name}**: {plain(text)}" for name, text in target.environment().items()]
    parts = ["# Measured on a GPU", f"`make gpu-check`, compresskit {__version__}, {now()[:10]}.", "\n".join(where)]
    parts += ["## Conformance on the device", conformance(numbers), "## Tests", plain((tests.stdout.splitlines() or ["no output"])[-1])]
    for found in results:
        rows = [row(arm) for arm in found.arms if arm.status == "done"]
        parts += [f"## {plain(found.study)}", table(HEAD, rows, {2, 3, 6, 7}), missing(found).removeprefix("## Without a result\n\n"), notes(found)]
        parts += [plain(found.protocol["GPU"])] if "GPU" in found.protocol else []
    return "\n\n".join(part for part in parts if part) + "\n"


def conformance(numbers: Outcome) -> str:
    if numbers.status != "done":
        return f"Failed: {plain(numbers.cause)}"
    rows = numbers.value
    wrong = [f"- `{row.preset}`, {label}: {plain(text)} differ" for row in rows for label, text in row.different.items()]
    pairs = sum(row.vectors for row in rows)
    said = f"{len(rows)} presets with {rows[0].vectors} golden vectors each, {pairs} pairs, beside the NumPy oracle: "
    equal = "codes, scales, zero points and decoded values are equal bit by bit (scales that are quantized twice: but for last digits)."
    return said + ("\n\n".join([f"{len(wrong)} differ.", *wrong]) if wrong else equal)


def row(arm: Arm) -> list[str]:
    memory = words.megabytes(arm.memory.model_bytes) if arm.memory else words.NOTHING
    energy = f"{words.number(arm.gpu.millijoules)} mJ at {words.number(arm.gpu.watts)} W" if arm.gpu and arm.gpu.millijoules is not None else words.NOTHING
    names = [plain(arm.recipe), words.runtime_name(arm.runtime)]
    return [*names, *size_cells(arm), *latency_cells(arm), memory, energy, *accuracy_cells(arm), weights(arm)]


def notes(results: Results) -> str:
    """What ONNX Runtime left on the CPU, by arm."""
    found = [f"- {plain(arm.id)}: {plain(note)}" for arm in results.arms for note in arm.notes if "run on the CPU" in note]
    return "\n".join(found)


if __name__ == "__main__":
    raise SystemExit(main())
