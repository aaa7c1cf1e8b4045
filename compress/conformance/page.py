"""The matrix as docs/conformance.md, which is also what the test holds every class against."""

from collections.abc import Iterable

from compress.conformance import Answer, Row
from compress.conformance.golden import VECTORS
from compress.conformance.matrix import DECODED_ULPS, RANK

HEAD = f"""# Conformance

Golden vectors through this project and through the live library that owns each preset, on a CPU. Written by
`compresskit conformance --output docs/conformance.md`; `tests/test_conformance.py` asks the libraries again and fails where a class is worse than here.

The vectors are weights [64, 256]; odd length is [33, 65], ragged tail [63, 264], Gaussian and Student-t [128, 1024]. `compress/conformance/golden.py` says
what each holds.

| class | meaning |
|---|---|
| EXACT | every code is the same (-0 and +0 count as one level); both decode to the same bits, or within {DECODED_ULPS} float32 steps where `ulp` is said |
| UP TO TIES (n) | n codes differ, each at a value within 2^-22 (relative to the largest code) of the threshold between both: float32 does not decide those |
| ±1 CODE (n) | n codes differ by one, away from ties; codes of double-quantized scales count |
| DIFFERS (n) | n codes differ, some by more than one; without n: equal codes decode to other values |
| NO ANSWER | what the library makes of the tensor decodes to NaN, all of it: there is no number to compare with |
| cannot take | the library refuses such a tensor: the note repeats its reason |

Decoded values are compared in the dtype that the library returns, where both codes are the same. A step is that of the largest number that decoding adds:
the zero point's share, or the offset of a double-quantized scale.

Where both decode the whole reach of a scale to 0, its codes count as the same: under a scale of 0, or for zeros, any code says 0.

Some columns need a word:

- **fp16 input**: given float16, most PyTorch and ONNX functions compute the scale, divide and decode in float16, so that the same library makes another
  tensor of a half-precision model than of a float32 one. This project computes in float32 unless a format says `arithmetic: float16`; these cells compare
  with what the notes name, as `arithmetic` (all of it) or `scale_dtype` (the scale alone). Decoded values: a product is rounded before an offset is added.
  Everything that is exported decodes in float32. Weights whose float16 scales are below 2^-14 are not compared: libraries lose digits there, each its own way.
- **small channels**, **small tensor**, **subnormal scale**: channels of 1e-3 down to 1e-30, a tensor of 3e-8, and values up to 4e-38, whose integer scales
  are below 2^-126, the smallest normal float32. Most libraries have a smallest scale, each its own. A format's `small_scale` says which: presets named after
  a library do as it does; formats without a name have codes of 0 and a scale of 1 (`one`, the default of codebooks) or 2^-12 (`typical`, that of integers)
  for scales below 2^-126, since a kernel that flushes those to zero would decode nothing else. Values that are subnormal themselves are not compared.
"""


def markdown(answers: Iterable[Answer]) -> str:
    """The whole page."""
    return HEAD + "".join(section(answer) for answer in answers)


def section(answer: Answer) -> str:
    if answer.missing:
        return f"\n## {answer.peer}\n\nNOT INSTALLED\n"
    titles = ["preset", "function", *VECTORS]
    lines = [f"\n## {answer.peer} {answer.version}\n", table_line(titles), "|---" * len(titles) + "|"]
    lines += [table_line([f"`{row.preset}`", row.how, *(str(row.cells[label]) for label in VECTORS)]) for row in answer.rows]
    notes = [f"- `{row.preset}`, {row.how}: {row.reason}." for row in answer.rows if row.reason]
    refusals = {cell.detail: label for row in answer.rows for label, cell in row.cells.items() if cell.kind == "cannot take"}
    notes += [f"- Cannot take {label}: {detail}." for detail, label in refusals.items()]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def table_line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def classes(page: str) -> dict[tuple[str, str, str, str], str]:
    """The page's own classes: (library, preset, function, vector) to one of Kind."""
    found, peer, vectors = {}, "", []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            peer, vectors = line.split()[1], []
        elif line.startswith("| preset"):
            vectors = cells[2:]
        elif line.startswith("| `") and vectors:
            found |= {(peer, cells[0].strip("`"), cells[1], v): kind.split(" (")[0].split(",")[0] for v, kind in zip(vectors, cells[2:], strict=True)}
    return found


def worse(answer: Answer, expected: dict[tuple[str, str, str, str], str]) -> list[str]:
    """The cells of an answer whose class is worse than expected, or that nobody expects."""
    wrong = []
    for row in answer.rows:
        for label, cell in row.cells.items():
            before = expected.get((answer.peer, row.preset, row.how, label), "not on the page")
            if cell.kind != before and not (before in RANK and RANK.get(cell.kind, 9) < RANK[before]):
                wrong.append(f"{row.preset}, {row.how}, {label}: {cell} {cell.detail}, was {before}")
    return wrong


def summary(row: Row) -> str:
    """Where a row is not EXACT, in a few words."""
    kinds: dict[str, list[str]] = {}
    for label, cell in row.cells.items():
        if cell.kind != "EXACT":
            kinds.setdefault(cell.kind, []).append(f"{label} ({cell.count})" if cell.count else label)
    return "; ".join(f"{kind}: {', '.join(labels)}" for kind, labels in kinds.items())
