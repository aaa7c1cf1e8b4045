"""Which arithmetic a PyTorch file gives a tensor, decided from the plan alone."""

from dataclasses import dataclass, field
from typing import Literal

from compress.errors import Refused
from compress.formats import CodebookFormat, FloatFormat, IntFormat, PerAxis, PerGroup, PerTensor
from compress.plan import Decision
from exporters import Placed

Way = Literal["decode", "load", "weight_only", "dynamic", "static", "int4", "bitsandbytes"]
"""decode       expanded to float32 at each run, before the operator that reads it
load         expanded to float32 once, when a runtime loads the file
weight_only  float product with the codes, scaled afterwards
dynamic      int8 product with activations quantized per token at run time
static       int8 product with activations quantized by calibrated ranges
int4         groups of 4-bit codes by aten._weight_int4pack_mm_for_cpu
bitsandbytes  blocks of NF4 or FP4 codes by bitsandbytes.gemm_4bit
"""

LINEAR = ("linear", "attention")
STATIC_CONVOLUTIONS = ("conv1d", "conv2d", "depthwise_conv1d", "depthwise_conv2d")
INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16  # the kernel wants a multiple of this many outputs
BNB_TYPES = {"nf4": "nf4", "fp4_bnb": "fp4"}  # our names of codebooks, and bitsandbytes'
BNB_BLOCKS = (32, 64, 128, 256, 512, 1024)
BNB_ROWS = 32  # its fused CPU kernel wants a multiple of this many outputs, and whole blocks in every row
BNB_NESTED = 256


@dataclass(frozen=True)
class Choice(Placed):
    way: Way = field(kw_only=True)

    @property
    def at_load(self) -> bool:
        """Whether a runtime computes what follows from the weight's constants alone when it loads the file."""
        return self.way in ("load", "int4", "bitsandbytes")


def place(decision: Decision, framework: str) -> Choice:
    """The arithmetic for a tensor with a format. Refused where no file can hold it."""
    fmt, activations = decision.format, decision.activations
    if activations is not None and activations.type == "static" and activations.bits == 16:
        raise Refused("PyTorch has no kernels for 16-bit integer activations")
    if isinstance(fmt, FloatFormat):
        return Choice("decoded", f"stored in {fmt.dtype}, computed in float32{unquantized(activations)}", way="decode")
    if isinstance(fmt, CodebookFormat):
        return codebook(decision, fmt)
    if fmt.signed and fmt.bits == 4 and isinstance(fmt.granularity, PerGroup):
        return int4(decision, fmt)
    if not broadcasts(fmt):
        return at_load(decision)
    plain = fmt.bits == 8 and fmt.symmetric
    if activations is None or not plain:
        return without_activations(decision, fmt, plain)
    if activations.type == "dynamic":
        if decision.kind in LINEAR:
            return Choice("native", way="dynamic")
        return Choice("decoded", f"PyTorch has no dynamic int8 kernel for layers of kind {decision.kind}; their activations stay in float", way="decode")
    if decision.kind in (*LINEAR, *STATIC_CONVOLUTIONS) and not fmt.negative_scales:
        return Choice("native", way="static")
    what = "negative scales" if fmt.negative_scales else f"layers of kind {decision.kind}"
    return Choice("decoded", f"PyTorch has no static int8 kernel for {what}; their activations stay in float", way="decode")


def unquantized(activations) -> str:
    return "" if activations is None else "; its activations stay in float"


def broadcasts(fmt: IntFormat) -> bool:
    """Whether a cast, a subtraction and a product over whole rows expand it, which costs less than the layer itself."""
    return fmt.plain and fmt.bits >= 8 and isinstance(fmt.granularity, PerTensor | PerAxis)


def at_load(decision: Decision, problem: str = "") -> Choice:
    """Expanded once, by operators in the file that unpack and look up bit for bit what the core decodes."""
    problem = problem or f"PyTorch's CPU kernels do not compute with {decision.format}"
    return Choice("decoded", f"{problem}: expanded to float32 when the file is loaded{unquantized(decision.activations)}", way="load")


def int4(decision: Decision, fmt: IntFormat) -> Choice:
    problem = next((text for wrong, text in int4_limits(decision, fmt) if wrong), None)
    if problem is None:
        return Choice("native", f"the kernel computes in bfloat16{unquantized(decision.activations)}", way="int4")
    return at_load(decision, f"no int4 kernel, as {problem}")


def int4_limits(decision: Decision, fmt: IntFormat):
    yield decision.kind not in LINEAR, f"it multiplies linear layers only, and this is a layer of kind {decision.kind}"
    yield fmt.granularity.size not in INT4_GROUPS, f"its groups hold {', '.join(map(str, INT4_GROUPS))} values, not {fmt.granularity.size}"
    yield decision.shape[1] % fmt.granularity.size != 0, f"its groups are whole, and {decision.shape[1]} inputs are no multiple of {fmt.granularity.size}"
    yield not fmt.symmetric and fmt.zero_point != "offset", f"it adds offsets and has no {fmt.zero_point} zero points"
    yield fmt.scale_dtype != "bfloat16", f"its scales are bfloat16, the recipe's {fmt.scale_dtype}"
    yield decision.shape[0] % INT4_ROWS != 0, f"it wants a multiple of {INT4_ROWS} outputs, not {decision.shape[0]}"


def codebook(decision: Decision, fmt: CodebookFormat) -> Choice:
    if fmt.codebook not in BNB_TYPES:
        return at_load(decision)
    problem = next((text for wrong, text in bnb_limits(decision, fmt) if wrong), None)
    if problem is not None:
        return at_load(decision, f"bitsandbytes' kernel does not compute with it, as {problem}")
    kernel = "bitsandbytes computes in bfloat16 on CPUs with AVX512-BF16; on others its operator expands the weight to float32 at each run"
    return Choice("native", f"{kernel}{unquantized(decision.activations)}", way="bitsandbytes")


def bnb_limits(decision: Decision, fmt: CodebookFormat):
    size = getattr(fmt.granularity, "size", None)
    yield decision.kind not in LINEAR, f"it multiplies linear layers only, and this is a layer of kind {decision.kind}"
    yield size not in BNB_BLOCKS, f"its blocks hold {', '.join(map(str, BNB_BLOCKS))} values, and the format's scales are {fmt.granularity}"
    yield fmt.scaling == "none", "it wants scales"
    yield fmt.scale_dtype != "float32", f"its scales are float32, and the format's {fmt.scale_dtype}"
    known = fmt.double is None or (fmt.double.dynamic and fmt.double.block == BNB_NESTED)
    yield not known, f"it knows dynamic scales of {BNB_NESTED}, and the format's are {fmt.double}"
    yield size is not None and decision.shape[1] % size != 0, f"its blocks end with the row, and {decision.shape[1]} inputs are no multiple of {size}"
    yield decision.shape[0] % BNB_ROWS != 0, f"it wants a multiple of {BNB_ROWS} outputs, not {decision.shape[0]}"


def without_activations(decision: Decision, fmt: IntFormat, plain: bool) -> Choice:
    if plain and decision.kind in LINEAR:
        return Choice("decoded", "codes are cast to float32, the product is scaled: ATen's int8 weight-only kernel is fast in bfloat16 only", way="weight_only")
    if decision.kind == "embedding" and plain:
        return Choice("decoded", "only the rows that are looked up are expanded to float32", way="decode")
    return Choice("decoded", f"no CPU kernel of PyTorch computes with {fmt} in layers of kind {decision.kind}{unquantized(decision.activations)}", way="decode")
