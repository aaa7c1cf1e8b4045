"""Writes compressed networks into the files that runtimes load, and proves that the files hold the plan."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compress.artifact import Artifact, Contents, Ledger, Placement, StoredTensor, counted, file_hash
from compress.backends import BACKENDS
from compress.card import Card
from compress.errors import BrokenFile, ExportError, InputError, Refused
from compress.formats import CodebookFormat, Format, IntFormat
from compress.numerics.codebooks import levels
from compress.pipeline import Compressed
from compress.plan import Decision, Plan
from compress.registry import Entry, Registry

EXPORTERS = Registry(
    "exporter",
    {
        "litert": Entry("exporters.to_litert", "tensorflow", "LiteRT .tflite with the core's own codes and scales"),
        "litert-converter": Entry("exporters.litert_converter", "tensorflow", "LiteRT .tflite quantized by TFLiteConverter itself (Keras models)"),
        "onnx": Entry("exporters.to_onnx", "onnx", "ONNX: QDQ, MatMulInteger, MatMulNBits"),
        "torch": Entry("exporters.to_torch", "torch", "torch.export .pt2: torchao, PT2E, int4 groups"),
        "torch-pt2e": Entry("exporters.to_torch_pt2e", "torch", "torch.export .pt2 quantized by PT2E's x86 quantizer itself (static int8)"),
        "executorch": Entry("exporters.to_executorch", "executorch", "ExecuTorch .pte: XNNPACK in float, int8 and int4"),
        "safetensors": Entry("exporters.to_safetensors", "checkpoints", "Hugging Face checkpoint: bitsandbytes NF4 and FP4, compressed-tensors"),
        "gguf": Entry("exporters.to_gguf", "checkpoints", "GGUF for llama.cpp: Q4_0, Q4_1, Q8_0, F16, BF16"),
    },
    aliases={
        "tflite": "litert",
        "tflite-converter": "litert-converter",
        "pt2": "torch",
        "pytorch": "torch",
        "pte": "executorch",
        "bitsandbytes": "safetensors",
        "compressed-tensors": "safetensors",
    },
)

READERS = {".tflite": "litert", ".onnx": "onnx", ".pt2": "torch", ".pte": "executorch", ".safetensors": "safetensors", ".gguf": "gguf"}
METADATA_KEY = "compresskit"
FOLDED = 1e-5  # relative: converters fold constants into float weights in float32, in an order of their own


@dataclass(frozen=True)
class Placed:
    """How an exporter will store one tensor, said before any work."""

    placement: Placement
    reason: str = ""


class Exporter(Protocol):
    """A module with these names. `write` may take minutes; `place` is instant and imports no framework."""

    SUFFIX: str
    SOURCES: tuple[str, ...]  # the backends whose networks it writes
    RUNTIME: str  # the runtime that a study uses for its files; empty where other programs run them
    OWN_NUMBERS: bool  # True where the converter picks codes itself, so nothing is compared with the plan

    def place(self, decision: Decision, framework: str) -> Placed:
        """How a tensor of the plan will be stored. Raises Refused, with the reason, where the format cannot be written."""
        ...

    def write(self, small: Compressed, path: Path) -> tuple[str, ...]:
        """Writes the file with `metadata(...)` inside and returns notes: what was done the runtime's own way.

        Files that it writes beside `path` go along with it.
        """
        ...

    def read(self, path: Path) -> Contents:
        """What a file holds, whoever wrote it. BrokenFile for one that is damaged."""
        ...


def metadata(small: Compressed, exporter: str, stored: dict[str, dict[str, Any]]) -> str:
    """JSON that every exporter embeds in its file, so that `read` can name tensors as the plan does.

    `stored` maps a plan's name to {"file_name", "placement", "reason", ...}: whatever `read` needs to undo the runtime's layout.
    """
    from compress import __version__

    recipe = small.recipe
    return json.dumps(
        {
            "version": __version__,
            "exporter": exporter,
            "recipe": recipe.name,
            "recipe_id": recipe.id,
            "inputs": [[spec.name, list(spec.shape), spec.dtype] for spec in small.network.inputs],
            "tensors": stored,
            **({"kept": proven(small)} if small.kept else {}),
            **({"card": small.card.model_dump(exclude_defaults=True)} if small.card else {}),
        },
        separators=(",", ":"),
    )


def proven(small: Compressed) -> dict[str, list[str]]:
    """What the recipe's steps promise of each tensor, as it was last measured."""
    last = {(k.tensor, k.claim): f"{k.claim}: {k.measured} after {k.after}" for k in small.kept}
    names = dict.fromkeys(name for name, _ in last)
    return {name: [words for (tensor, _), words in last.items() if tensor == name] for name in names}


def placements(plan: Plan, exporter: str, framework: str, allow_float: bool = False) -> dict[str, Placed]:
    """How each tensor with a format will be stored by an exporter; Refused names every tensor that it cannot store."""
    module = EXPORTERS.load(exporter)
    if framework not in module.SOURCES:
        others = ", ".join(name for name in EXPORTERS if framework in EXPORTERS.load(name).SOURCES)
        raise Refused(f"{EXPORTERS.name(exporter)} takes no models of the backend {framework} ({BACKENDS.entries[framework].about}); these do: {others}")
    placed, refused = {}, []
    for decision in plan.compressed.values():
        try:
            placed[decision.name] = module.place(decision, framework)
        except Refused as error:
            if allow_float:
                placed[decision.name] = Placed("float", str(error))
            else:
                refused.append((decision, str(error)))
    if refused:
        reasons = dict.fromkeys(reason for _, reason in refused)
        listed = "; ".join(f"{reason} ({some([d.name for d, r in refused if r == reason])})" for reason in reasons)
        name = EXPORTERS.name(exporter)
        raise Refused(f"{name} cannot write recipe {plan.recipe!r}: {listed}. Choose another recipe or exporter, or set allow_float: true.")
    return placed


def predicted_bytes(plan: Plan, exporter: str, placed: dict[str, Placed]) -> int | None:
    """About what the file will take, the model's own graph left out; None for exporters that say nothing of what they add to the plan."""
    module = EXPORTERS.load(exporter)
    if not hasattr(module, "overhead"):
        return None
    small = [d for d in plan.decisions if (placed[d.name].placement != "float" if d.format else d.prune is not None)]
    return plan.size_bytes + module.overhead(small, placed)


def refuse_exotic(fmt: Format, runtime: str) -> None:
    """Refused for formats that a runtime has no operators for: codebooks, unsigned codes, float zero points, 8-bit float scales, flat blocks."""
    if isinstance(fmt, CodebookFormat) or (isinstance(fmt, IntFormat) and not fmt.plain):
        raise Refused(f"{runtime} has no operators for {fmt}")


def some(names: list[str], most: int = 6) -> str:
    """The first names, and how many more there are; `compresskit plan` shows each tensor."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def export(small: Compressed, path: str | os.PathLike, exporter: str | None = None, card: Card | None = None) -> Artifact:
    """The artifact at `path`, written, reopened and compared with the plan. A card goes into the file.

    The exporter follows from the suffix (.tflite, .onnx, .pt2, ...) unless named. The file appears whole or not at all.
    Raises Refused (the runtime cannot do it), ExportError (the file differs from the plan, every tensor named), OSError.
    """
    path, small = Path(path), replace(small, card=card)
    name = EXPORTERS.name(exporter or reader_of(path))
    module = EXPORTERS.load(name)
    if path.suffix != module.SUFFIX:
        raise Refused(f"{name} writes {module.SUFFIX} files, not {path.suffix or 'files without suffix'}: {path.name}")
    placements(small.plan, name, small.network.framework, small.recipe.allow_float)
    known = getattr(module, "INTERFACES", ("float32",))
    if small.recipe.interface not in known:
        raise Refused(f"{name} writes files with {' or '.join(known)} inputs and outputs, not {small.recipe.interface}: leave `interface` out of the recipe")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        notes = module.write(small, fresh)
        contents = module.read(fresh)
        if not module.OWN_NUMBERS:
            verify(small, contents)
        check_labels(card, contents)
        artifact = describe(fresh, name, contents, (*small.network.notes, *notes, *left_in_float(small, contents)))
        for companion in sorted(fresh.parent.iterdir()):
            if companion != fresh:
                os.replace(companion, path.parent / companion.name)
        os.replace(fresh, path)
    return replace(artifact, path=path)


def check_labels(card: Card | None, contents: Contents) -> None:
    """InputError where a card has not a label for each class."""
    if card and card.labels and contents.outputs and contents.outputs[0].shape[-1:] != (len(card.labels),):
        raise InputError(f"labels: {len(card.labels)} for a first output {list(contents.outputs[0].shape)}; its last axis needs one for each class")


def reader_of(path: Path) -> str:
    if path.suffix not in READERS:
        raise BrokenFile(f"{path.name}: artifacts end in {', '.join(READERS)}, not {path.suffix or 'nothing'}")
    return READERS[path.suffix]


def inspect(path: str | os.PathLike) -> Artifact:
    """What a .tflite, .onnx, .pt2, .pte, .safetensors or .gguf file holds, whoever wrote it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    contents = EXPORTERS.load(reader_of(path)).read(path)
    return describe(path, contents.metadata.get("exporter", ""), contents, ())


def describe(path: Path, exporter: str, contents: Contents, notes: tuple[str, ...]) -> Artifact:
    told = contents.metadata
    contents = replace(contents, tensors=tuple(map(counted, contents.tensors)))
    return Artifact(path, exporter, told.get("recipe", ""), told.get("recipe_id", ""), contents, Ledger.of(path, contents.tensors), notes, file_hash(path))


def left_in_float(small: Compressed, contents: Contents) -> tuple[str, ...]:
    stored = {t.name: t for t in contents.tensors}
    return tuple(
        f"{name} stayed in float: {stored[name].reason or 'the exporter did not say why'}"
        for name in small.plan.compressed
        if name in stored and stored[name].placement == "float"
    ) + tuple(f"{d.name} stayed in float: {d.reason}" for d in small.plan.decisions if d.wanted and d.format is None)


def verify(small: Compressed, contents: Contents) -> None:
    """Compares a file with the plan, code by code. ExportError names every tensor that differs and how."""
    stored = {tensor.name: tensor for tensor in contents.tensors}
    wrong = [f"  {name}: {problem}" for name, problem in changed_floats(small, stored)]
    for name, encoded in small.encoded.items():
        problem = difference(encoded, stored.get(name), small.recipe.allow_float)
        if problem:
            wrong.append(f"  {name}: {problem}")
    if wrong:
        raise ExportError(f"the file does not hold the plan of recipe {small.recipe.name!r} for {len(wrong)} tensor(s):\n" + "\n".join(wrong))


def changed_floats(small: Compressed, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    """Weights without a format whose zeros the file leaves out, where it does not give the network's values back."""
    weights = small.network.weights()
    for name, tensor in stored.items():
        if tensor.values is None or name not in weights:
            continue
        own, found = weights[name].value, tensor.values
        if own.shape != found.shape or np.any((own == 0) != (found == 0)) or not any(proportional(own, found, axis) for axis in (0, 1)):
            yield name, "the values around its zeros differ"


def proportional(own: np.ndarray, found: np.ndarray, axis: int) -> bool:
    """Whether a constant that a converter may have folded in, one for each entry of this axis, is all that makes the difference."""
    kept = own != 0
    ratio = np.moveaxis(np.divide(found, own, where=kept, out=np.ones_like(own)), axis, 0).reshape(own.shape[axis], -1)
    kept = np.moveaxis(kept, axis, 0).reshape(ratio.shape)
    low, high = ratio.min(1, where=kept, initial=np.inf), ratio.max(1, where=kept, initial=-np.inf)
    return bool(np.all((high - low <= FOLDED * np.maximum(np.abs(low), np.abs(high))) | ~kept.any(1)))


def difference(encoded, tensor: StoredTensor | None, allow_float: bool) -> str | None:
    """How a stored tensor differs from the encoded one, in words, or None."""
    if tensor is None:
        return "not in the file"
    if tensor.placement == "float":
        return None if allow_float else f"stayed {tensor.dtype}: {tensor.reason or 'the exporter did not say why'}; set allow_float: true to accept that"
    if tensor.codes is None or tensor.codes.shape != encoded.codes.shape:
        return f"stored as {tensor.dtype} {list(tensor.shape)}, planned {encoded.format} {list(encoded.codes.shape)}"
    off = int((tensor.codes != encoded.codes).sum())
    if off:
        return f"{off} of {encoded.codes.size} codes differ"
    scales = encoded.scales if encoded.global_scale is None else encoded.scales * encoded.global_scale
    pairs = {
        "scales": (tensor.scales, scales),
        "zero points": (tensor.zero_points, encoded.zero_points),
        "codebooks": (tensor.codebook, codebook(encoded, tensor)),
    }
    return next((f"{noun} differ" for noun, (theirs, ours) in pairs.items() if not same_numbers(theirs, ours)), None)


def codebook(encoded, tensor: StoredTensor) -> np.ndarray | None:
    """What the file's codebook must equal: a table with a name need not be in the file, as a kernel may know it."""
    named = isinstance(encoded.format, CodebookFormat) and not encoded.format.learned
    return levels(encoded.format.codebook).values if named and tensor.codebook is not None else encoded.codebook


def same_numbers(theirs: np.ndarray | None, ours: np.ndarray | None) -> bool:
    if ours is None or theirs is None:
        given = ours if theirs is None else theirs
        return given is None or not np.any(given)
    return np.array_equal(np.asarray(theirs, np.float32).ravel(), np.asarray(ours, np.float32).ravel(), equal_nan=True)
