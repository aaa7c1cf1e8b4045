"""Integers, MXFP4 and NVFP4 as compressed-tensors stores them, for transformers and vLLM."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.artifact import StoredTensor
from compress.errors import Refused
from compress.formats import CodebookFormat, Format, IntFormat, PerAxis, PerGroup, PerTensor
from compress.numerics import Encoded, reach
from compress.numerics.layouts import LAYOUTS
from compress.numerics.storing import from_storage, to_storage
from compress.plan import Decision
from exporters.checkpoint_file import Raw

METHOD = "compressed-tensors"
REASON = "transformers expands it to the model's own type at load or at the first forward pass; vLLM's kernels multiply with the codes"
BFLOAT16 = "compressed-tensors decodes 4-bit floats in bfloat16, up to 2^-7 of each value off, and config.json says that the model computes in it"
ZERO_POINTS = "transformers 5.23 loads packed zero points only with quantization_config=CompressedTensorsConfig(dequantize=True)"
STRATEGIES = {PerTensor: "tensor", PerAxis: "channel", PerGroup: "group"}
SCALES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3": "F8_E4M3", "float8_e8m0": "U8"}
FP4_GROUPS = {"nvfp4": 16, "mx": 32}


@dataclass(frozen=True)
class Way:
    """One of compressed-tensors' formats, and the layout of its codes."""

    name: str
    layout: str
    weights: Callable[[Any], dict[str, Any]]  # its QuantizationArgs


def way(fmt: Format) -> Way:
    if isinstance(fmt, IntFormat):
        return Way("pack-quantized", "compressed_tensors", integer_arguments)
    return NVFP4 if fmt.scaling == "nvfp4" else MXFP4


def integer_arguments(fmt: IntFormat) -> dict[str, Any]:
    strategy = STRATEGIES[type(fmt.granularity)]
    size = fmt.granularity.size if strategy == "group" else None
    return {"num_bits": fmt.bits, "type": "int", "symmetric": fmt.symmetric, "strategy": strategy, "group_size": size, "dynamic": False}


def float_arguments(strategy: str, scale_dtype: str) -> Callable[[CodebookFormat], dict[str, Any]]:
    common = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False, "scale_dtype": scale_dtype}
    return lambda fmt: common | {"group_size": fmt.granularity.size}


NVFP4 = Way("nvfp4-pack-quantized", "compressed_tensors_float", float_arguments("tensor_group", "torch.float8_e4m3fn"))
MXFP4 = Way("mxfp4-pack-quantized", "compressed_tensors_float", float_arguments("group", "torch.uint8"))


def takes(fmt: Any) -> bool:
    return isinstance(fmt, IntFormat) or (isinstance(fmt, CodebookFormat) and fmt.codebook == "e2m1")


def check(decision: Decision) -> None:
    """Refused where compressed-tensors has no name for the format."""
    fmt = decision.format
    problems = integer_limits(decision, fmt) if isinstance(fmt, IntFormat) else float_limits(decision, fmt)
    for wrong, reason in problems:
        if wrong:
            raise Refused(f"compressed-tensors cannot store {fmt}: {reason}")


def integer_limits(decision: Decision, fmt: IntFormat):
    inputs = decision.shape[-1]
    yield fmt.bits > 8, "it packs 1 to 8 bits"
    yield not fmt.signed or fmt.zero_point != "integer", "its codes are signed and its zero points are codes"
    yield type(fmt.granularity) not in STRATEGIES, "it has scales per tensor, output channel or group of inputs"
    yield not fmt.symmetric and isinstance(fmt.granularity, PerTensor), "it packs zero points of channels and groups only"
    yield fmt.scale_dtype not in ("float32", "float16", "bfloat16"), f"the scales of its integers are not {fmt.scale_dtype}"
    yield isinstance(fmt.granularity, PerGroup) and inputs % fmt.granularity.size != 0, f"groups must divide the {inputs} inputs"


def float_limits(decision: Decision, fmt: CodebookFormat):
    inputs, size = decision.shape[-1], FP4_GROUPS.get(fmt.scaling.partition("_")[0])
    yield size is None, "its 4-bit floats are MXFP4 and NVFP4"
    yield not isinstance(fmt.granularity, PerGroup) or fmt.granularity.size != size, f"groups hold {size} inputs"
    yield size is not None and inputs % size != 0, f"groups of {size} must divide the {inputs} inputs"


def tensors(name: str, encoded: Encoded, dtype: str) -> dict[str, Raw]:
    """The file's tensors of one weight."""
    fmt = encoded.format
    rows = encoded.scales.reshape(-1) if isinstance(fmt.granularity, PerTensor) else encoded.scales.reshape(encoded.shape[0], -1)
    found = {
        f"{name}_packed": Raw.of(LAYOUTS[way(fmt).layout].pack(encoded.codes, fmt.bits)),
        f"{name}_scale": Raw.of(to_storage(rows, fmt.scale_dtype), SCALES[fmt.scale_dtype]),
    }
    if isinstance(fmt, IntFormat):
        found[f"{name}_shape"] = Raw.of(np.array(encoded.shape, np.int64))
    if encoded.zero_points is not None:
        zeros = encoded.zero_points.reshape(encoded.shape[0], -1)
        found[f"{name}_zero_point"] = Raw.of(LAYOUTS["compressed_tensors_zeros"].pack(zeros, fmt.bits))
    if encoded.global_scale is not None:
        found[f"{name}_global_scale"] = Raw.of(np.array([np.float32(1) / encoded.global_scale], np.float32))  # it divides
    return found


def read(name: str, fmt: Format, whole: float | None, raws: dict[str, Raw]) -> StoredTensor:
    """A weight as the file has it. `whole` is the global scale whose rounded reciprocal the file holds."""
    packed, stored = raws[f"{name}_packed"].value, raws[f"{name}_scale"]
    layout = LAYOUTS[way(fmt).layout]
    shape = tuple(map(int, raws[f"{name}_shape"].value)) if f"{name}_shape" in raws else (packed.shape[0], packed.shape[1] * 8 // fmt.bits)
    scales = from_storage(stored.value, fmt.scale_dtype)
    scales = scales.reshape({PerTensor: (), PerAxis: (shape[0],)}.get(type(fmt.granularity), scales.shape))
    if scales.shape != reach.scale_shape(shape, fmt.granularity):
        raise ValueError(f"{name}: scales of shape {list(scales.shape)} for {fmt} of shape {list(shape)}")
    found = {"codes": layout.unpack(packed, fmt.bits, shape), "scales": scales, "scale_bytes": stored.value.nbytes}
    if f"{name}_zero_point" in raws:
        zeros = raws[f"{name}_zero_point"].value
        of = (shape[0], scales.size // shape[0])
        found |= {"zero_points": LAYOUTS["compressed_tensors_zeros"].unpack(zeros, fmt.bits, of).reshape(scales.shape), "zero_point_bytes": zeros.nbytes}
    if f"{name}_global_scale" in raws:
        if raws[f"{name}_global_scale"].value[0] != np.float32(1) / np.float32(whole):
            raise ValueError(f"{name}: its global scale is not 1 / {whole}")
        found["scales"] = scales * np.float32(whole)
        found["scale_bytes"] += 4
    dtype = f"int{fmt.bits}" if isinstance(fmt, IntFormat) else fmt.codebook
    return StoredTensor(name, f"{name}_packed", shape, dtype, "decoded", REASON, packed.nbytes, **found)


def loads_as(formats: list[Format], dtype: str) -> str:
    """What config.json names as the model's type: weights in 4-bit floats come out of compressed-tensors in bfloat16, whatever the rest is in."""
    return "bfloat16" if any(isinstance(fmt, CodebookFormat) for fmt in formats) else dtype


def notes(formats: list[Format]) -> tuple[str, ...]:
    found = {
        BFLOAT16: any(isinstance(fmt, CodebookFormat) for fmt in formats),
        ZERO_POINTS: any(isinstance(fmt, IntFormat) and not fmt.symmetric for fmt in formats),
    }
    return tuple(text for text, so in found.items() if so)


def config(formats: dict[str, Format], linears: dict[str, type], dtype: str) -> dict[str, Any]:
    """config.json's quantization_config. `formats` by module, `linears` every linear module."""
    kinds: dict[tuple, list[str]] = {}
    for module, fmt in formats.items():
        kinds.setdefault((way(fmt).name, tuple(way(fmt).weights(fmt).items())), []).append(module)
    whole = len(kinds) == 1  # kernels that fuse layers know classes better than names
    groups = {
        f"group_{index}": {"targets": ["Linear"] if whole else modules, "weights": dict(weights), "format": name}
        for index, ((name, weights), modules) in enumerate(kinds.items())
    }
    names = {name for name, _ in kinds}
    return {
        "quant_method": METHOD,
        "format": names.pop() if len(names) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(set(linears) - set(formats)),
    }
