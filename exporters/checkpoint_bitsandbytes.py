"""NF4 and FP4 weights as bitsandbytes' Linear4bit keeps them (bitsandbytes.functional.QuantState.as_dict)."""

import json
from math import prod
from typing import Any

import numpy as np

from compress.artifact import StoredTensor
from compress.errors import Refused
from compress.formats import CodebookFormat, PerBlock
from compress.numerics import Encoded
from compress.numerics.codebooks import levels
from compress.numerics.layouts import LAYOUTS
from compress.numerics.scaling import ScaleCodes
from compress.plan import Decision
from exporters.checkpoint_file import Raw

METHOD = "bitsandbytes"
REASON = "bitsandbytes expands blocks to the compute type before it multiplies; only its CUDA kernel for single rows and its AVX512-BF16 kernel read codes"
TYPES = {"nf4": "nf4", "fp4_bnb": "fp4"}
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def takes(fmt: Any) -> bool:
    return isinstance(fmt, CodebookFormat) and fmt.codebook in TYPES


def check(decision: Decision) -> None:
    """Refused where Linear4bit cannot hold the format."""
    fmt = decision.format
    if fmt.scaling != "amax" or fmt.scale_dtype != "float32" or not isinstance(fmt.granularity, PerBlock) or fmt.granularity.size not in BLOCKS:
        raise Refused(f"bitsandbytes keeps one float32 largest magnitude for each block of {', '.join(map(str, BLOCKS))} values, not {fmt}")
    if fmt.double and not fmt.double.dynamic:
        raise Refused(f"bitsandbytes double-quantizes by its dynamic map, not {fmt.double}")


def tensors(name: str, encoded: Encoded, dtype: str) -> dict[str, Raw]:
    """The file's tensors of one weight. `dtype` is what bitsandbytes decodes to: the model's own."""
    fmt, kind = encoded.format, TYPES[encoded.format.codebook]
    state = {"quant_type": kind, "blocksize": fmt.granularity.size, "dtype": dtype, "shape": list(encoded.shape)}
    found = {
        name: Raw.of(LAYOUTS["bitsandbytes"].pack(encoded.codes, 4)),
        f"{name}.quant_map": Raw.of(levels(fmt.codebook).values + np.float32(0)),  # bitsandbytes writes FP4's -0 as 0
    }
    if fmt.double:
        codes = encoded.scale_codes
        state |= {"nested_blocksize": fmt.double.block, "nested_dtype": "float32", "nested_offset": float(codes.offset)}
        found |= {
            f"{name}.absmax": Raw.of(codes.codes),
            f"{name}.nested_absmax": Raw.of(codes.factors),
            f"{name}.nested_quant_map": Raw.of(levels("dynamic8").values),
        }
    else:
        found[f"{name}.absmax"] = Raw.of(encoded.scales)
    return found | {f"{name}.quant_state.bitsandbytes__{kind}": Raw.of(np.frombuffer(json.dumps(state).encode(), np.uint8))}


def read(name: str, fmt: CodebookFormat, whole: None, raws: dict[str, Raw]) -> StoredTensor:
    """A weight as the file has it: block size, shape and offset come from bitsandbytes' own state."""
    kind = TYPES[fmt.codebook]
    state = json.loads(raws[f"{name}.quant_state.bitsandbytes__{kind}"].value.tobytes())
    shape, absmax = tuple(state["shape"]), raws[f"{name}.absmax"].value
    scales, scale_bytes = absmax, absmax.nbytes
    if "nested_offset" in state:
        nested = raws[f"{name}.nested_absmax"].value
        scale_bytes += nested.nbytes + 4
        scales = ScaleCodes(absmax, nested, np.float32(state["nested_offset"])).decode(fmt.double)
    packed = raws[name].value
    if -(-prod(shape) // state["blocksize"]) != scales.size:
        raise ValueError(f"{name}: {scales.size} scales for shape {list(shape)} in blocks of {state['blocksize']}")
    codes = LAYOUTS["bitsandbytes"].unpack(packed, 4, shape)
    return StoredTensor(name, name, shape, kind, "decoded", REASON, packed.nbytes, scale_bytes, codes=codes, scales=scales)


def loads_as(formats: list[CodebookFormat], dtype: str) -> str:
    return dtype


def notes(formats: list[CodebookFormat]) -> tuple[str, ...]:
    return ()


def config(formats: dict[str, CodebookFormat], linears: dict[str, type], dtype: str) -> dict[str, Any]:
    """config.json's quantization_config. `formats` by module, `linears` every linear module with its class. Refused for what it cannot say."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    if len({(fmt.codebook, fmt.double) for fmt in formats.values()}) > 1:
        raise Refused("a bitsandbytes checkpoint has one format: NF4 or FP4, double-quantized or not; give the recipe one")
    fmt = next(iter(formats.values()))
    skipped = sorted(set(linears) - set(formats))
    missed = [name for name in formats if not should_convert_module(name, skipped) or linears[name] not in (nn.Linear, Conv1D)]
    if missed:
        raise Refused(f"transformers would not make bitsandbytes layers of {', '.join(missed)}: leave them out with a selector")
    return {
        "quant_method": METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": TYPES[fmt.codebook],
        "bnb_4bit_use_double_quant": fmt.double is not None,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
    }
