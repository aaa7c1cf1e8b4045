"""What an operator does, and in which numbers, read from the name that its runtime gives it."""

import re

GROUPS = {  # the first whose pattern is found in a kind has it
    "fused loops": r"^cpp_",
    "requantizing": r"requant|Convert \(\w+, Q\w+, Q\w+\)",
    "dequantizing": r"dequant|Convert \(\w+, Q\w+, F\w+\)",
    "quantizing": r"^(Dynamic)?QuantizeLinear|^QUANTIZE|::quantize_|choose_qparams|Convert \(\w+, F\w+, Q\w+\)",
    "depthwise convolutions": r"depthwise|DWConv",
    "attention": r"attention",
    "recurrent layers": r"lstm|gru|rnn",
    "convolutions and matrix products": r"conv(?!ert)|matmul|matrix multiply|gem[mv]|fully[ _]connected|[:_q]linear(_|$)|addmm|\bb?mm\b|_mm\b|_mm_",
    "layout and copies": r"transpose|permute|reorder|contiguous|clone|copy|reshape|\bpad|concat",
    "casts": r"cast|_to_copy|::to\b|convert",
}
REST = "everything else"
PRODUCTS = ("depthwise convolutions", "convolutions and matrix products", "attention", "recurrent layers")
"""Libraries compute a convolution of one pixel as a matrix product, so the two are one group."""
CARRYING = ("requantizing", "dequantizing", "quantizing", "layout and copies", "casts")
"""Groups whose operators do nothing but carry numbers from one form to another."""
INTEGER = re.compile(r"\bQ[A-Z]+\d+\w*\b|Integer|QuantizeMatMul|QLinear|QGemm|NBits|Bnb4|int[48]|_int_mm|qlinear|qconv|gem[mv]_4bit", re.IGNORECASE)


def group(kind: str) -> str:
    return next((name for name, pattern in GROUPS.items() if re.search(pattern, kind, re.IGNORECASE)), REST)


def is_product(kind: str) -> bool:
    return group(kind) in PRODUCTS


def in_integers(kind: str) -> bool:
    """Whether a kernel that multiplies does so with integers of 8 bits or less on one side at least."""
    return is_product(kind) and bool(INTEGER.search(kind))
