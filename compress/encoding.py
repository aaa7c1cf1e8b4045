"""One call for every number format: a NumPy array or a torch tensor in, an Encoded out."""

from typing import Any

from compress.formats import Format
from compress.numerics import Encoded
from compress.numerics import encode as encode_array
from compress.presets import preset


def encode(values: Any, fmt: str | Format, sensitivity: Any = None) -> Encoded:
    """`values` in a format: a preset's name (`compresskit formats` lists them), or a Format.

    values       NumPy array, or torch tensor, whose Encoded then holds tensors on the same device; output channels first
    sensitivity  in the values' shape, learned codebooks only: what an error of each value costs

    InputError for an empty tensor, NaN or infinity (with the first index), groups that do not fit; UnknownName suggests the nearest preset.
    Example: `compress.encode(weight, "bnb.nf4.dq").decode()`
    """
    fmt = preset(fmt).format if isinstance(fmt, str) else fmt
    if type(values).__module__.partition(".")[0] == "torch":
        from compress.backends import torch_numerics

        return torch_numerics.encode(values, fmt, sensitivity)
    return encode_array(values, fmt, sensitivity)
