"""Writes each reader of a small weight into the graph: the operators that compute with its codes."""

import torch

from compress.errors import MissingExtra
from compress.formats import FloatFormat
from exporters.torch_decoding import as_float, codes, decoded, scales
from exporters.torch_graph import CONVOLUTIONS, Builder, LinearCall, Site, aten, linear_call
from exporters.torch_placing import BNB_TYPES, Choice

EPSILON = torch.finfo(torch.float32).eps  # the smallest activation scale, as torchao's Int8Tensor has it


def place_site(builder: Builder, site: Site, choice: Choice) -> None:
    """Rewrites one reader in the chosen way, or decodes where this reader is not the kind of operator that way is for."""
    stored = builder.store(site.name, high_first=choice.way == "bitsandbytes")
    call = linear_call(site)
    with builder.module.graph.inserting_before(site.user):
        if choice.way in LINEAR_WAYS and call is not None:
            site.user.replace_all_uses_with(LINEAR_WAYS[choice.way](builder, site, call))
            builder.module.graph.erase_node(site.user)
            (stored.native if choice.placement == "native" else stored.decoded).append(choice.reason)
            return
        if not choice.at_load and gathers_rows(site):
            site.user.replace_all_uses_with(embedding(builder, site))
            builder.module.graph.erase_node(site.user)
        else:
            value = builder.ahead(decoded, site.name) if choice.at_load else decoded(builder, site.name)
            site.user.replace_input_with(site.source, builder.in_layout(value, builder.encoded[site.name].shape, site.layout))
    stored.decoded.append(choice.reason if choice.way in ("decode", "load") else f"{site.user.target} reads it, which has no such kernel")


def flattened(builder: Builder, x: torch.fx.Node) -> torch.fx.Node:
    """x as [tokens, features]."""
    shape = x.meta["val"].shape
    return x if len(shape) == 2 else builder.call(aten.reshape.default, x, [-1, shape[-1]])


def quantized(builder: Builder, x: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node]:
    """int8 codes [tokens, features] and float32 scales [tokens, 1]."""
    x = flattened(builder, x)
    largest = builder.call(aten.amax.default, builder.call(aten.abs.default, x), [-1], True)
    scale = builder.call(aten.clamp_min.default, builder.call(aten.div.Tensor, largest, 127.5), EPSILON)
    scaled = builder.call(aten.round.default, builder.call(aten.mul.Tensor, x, builder.call(aten.reciprocal.default, scale)))
    return builder.call(aten.to.dtype, builder.call(aten.clamp.default, scaled, -128, 127), torch.int8), scale


def in_bfloat16(builder: Builder, x: torch.fx.Node) -> torch.fx.Node:
    """[tokens, features]"""
    return builder.call(aten.to.dtype, flattened(builder, x), torch.bfloat16)


def finished(builder: Builder, site: Site, call: LinearCall, y: torch.fx.Node) -> torch.fx.Node:
    """y [tokens, outputs] in the shape of the replaced operator, with its bias."""
    shape = site.user.meta["val"].shape
    if len(shape) != 2:
        y = builder.call(aten.view.default, y, list(shape))
    y = y if call.bias is None else builder.call(aten.add.Tensor, y, call.bias)
    y.meta["val"] = site.user.meta["val"]
    return y


def weight_only(builder: Builder, site: Site, call: LinearCall) -> torch.fx.Node:
    """(x @ codes.T) * scales + bias in float32, the arithmetic of torchao's Int8Tensor."""
    y = builder.call(aten.linear.default, flattened(builder, call.x), as_float(builder, codes(builder, site.name)))
    return finished(builder, site, call, builder.call(aten.mul.Tensor, y, scales(builder, site.name)))


def dynamic(builder: Builder, site: Site, call: LinearCall) -> torch.fx.Node:
    """int8 x int8 to int32 with one symmetric scale per token, the arithmetic of torchao's Int8DynamicActivationInt8Weight.

    In plain ATen operators, so that a file loads without torchao; its scale is max |x| / 127.5.
    """
    x, scale = builder.once(quantized, call.x)
    product = builder.call(aten._int_mm.default, x, builder.call(aten.t.default, codes(builder, site.name)))
    # The scale comes first: (product * scale) * scales is the pattern that Inductor replaces by a oneDNN operator 1000 times slower for int8 activations.
    y = builder.call(aten.mul.Tensor, scale, builder.call(aten.to.dtype, product, torch.float32))
    return finished(builder, site, call, builder.call(aten.mul.Tensor, y, scales(builder, site.name)))


def int4(builder: Builder, site: Site, call: LinearCall) -> torch.fx.Node:
    """bfloat16 activations times groups of 4-bit codes: code * scale + offset.

    The kernel's own packing depends on the CPU (AVX2 and AVX-512 differ), so the file holds plain nibbles; a runtime packs them once when it loads the file.
    """
    encoded = builder.encoded[site.name]
    nibbles = builder.call(aten.to.dtype, codes(builder, site.name), torch.int32)
    packed = builder.call(aten._convert_weight_to_int4pack_for_cpu.default, nibbles, 1)
    columns = builder.call(aten.t.default, builder.part(site.name, "scales"))
    if encoded.zero_points is None:
        offsets = builder.call(aten.zeros_like.default, columns)
    else:
        offsets = builder.call(aten.t.default, builder.part(site.name, "zero_points"))
    pairs = builder.call(aten.stack.default, [columns, offsets], -1)
    x = builder.once(in_bfloat16, call.x)
    y = builder.call(aten._weight_int4pack_mm_for_cpu.default, x, packed, encoded.format.granularity.size, pairs)
    return finished(builder, site, call, builder.call(aten.to.dtype, y, torch.float32))


def bitsandbytes(builder: Builder, site: Site, call: LinearCall) -> torch.fx.Node:
    """bitsandbytes' own operator on its own bytes, as Linear4bit calls it.

    Which kernel that is depends on the CPU, and the fastest wants another packing, so a runtime chooses when it loads the file.
    """
    try:
        import bitsandbytes  # noqa: F401  registers the operator
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{site.name}: {builder.encoded[site.name].format} computes by bitsandbytes' operator: pip install bitsandbytes") from error
    encoded, name = builder.encoded[site.name], site.name
    kind, double = BNB_TYPES[encoded.format.codebook], encoded.scale_codes is not None
    x = builder.call(aten.contiguous.default, flattened(builder, call.x))  # its CPU kernel reads other strides as if they were these
    absmax = builder.part(name, "scale_factors" if double else "scales")
    nested = (builder.part(name, "scale_codes"), builder.table(name, "scales", "dynamic8"), builder.part(name, "scale_offset")) if double else ()
    if not double:
        absmax = builder.call(aten.view.default, absmax, [-1])
    weight = (builder.part(name, "codes"), list(encoded.shape), absmax, encoded.format.granularity.size, kind)
    return finished(builder, site, call, builder.call(torch.ops.bitsandbytes.gemm_4bit.default, x, *weight, None, *nested))


PADDED = {aten.conv1d.padding: aten.conv1d.default, aten.conv2d.padding: aten.conv2d.default}
LINEAR_WAYS = {"weight_only": weight_only, "dynamic": dynamic, "int4": int4, "bitsandbytes": bitsandbytes}


def gathers_rows(site: Site) -> bool:
    return site.user.target is aten.embedding.default and site.user.args[0] is site.source and site.layout.identity


def embedding(builder: Builder, site: Site) -> torch.fx.Node:
    """Looks up small rows and expands only those."""
    encoded, indices = builder.encoded[site.name], site.user.args[1]
    rows = as_float(builder, builder.call(aten.embedding.default, builder.part(site.name, "codes"), indices))
    if isinstance(encoded.format, FloatFormat):
        return rows
    factors, per_row = scales(builder, site.name), len(builder.scale_shape(site.name)) > 0
    if encoded.zero_points is not None:
        zeros = as_float(builder, builder.part(site.name, "zero_points"))
        rows = builder.call(aten.sub.Tensor, rows, looked_up(builder, zeros, indices) if per_row else zeros)
    return builder.call(aten.mul.Tensor, rows, looked_up(builder, factors, indices) if per_row else factors)


def looked_up(builder: Builder, per_row: torch.fx.Node, indices: torch.fx.Node) -> torch.fx.Node:
    """[..., 1]: the entry of every index."""
    return builder.call(aten.embedding.default, builder.call(aten.unsqueeze.default, per_row, 1), indices)


def static_site(builder: Builder, site: Site) -> torch.fx.Node | None:
    """The reader as a linear layer or convolution of a float constant in canonical layout, for the quantizer to find; None for any other operator."""
    call = linear_call(site)
    convolution = site.user.target in (*CONVOLUTIONS, *PADDED) and site.user.args[1] is site.source and site.layout.identity
    if call is None and not convolution:
        return None
    with builder.module.graph.inserting_before(site.user):
        weight = builder.attribute(builder.register(site.name, "float", torch.from_numpy(builder.encoded[site.name].decode())))
        if call is None:
            node = plain_convolution(builder, site.user, weight)
        else:
            node = builder.call(aten.linear.default, call.x, weight, *(() if call.bias is None else (call.bias,)))
    node.meta["val"] = site.user.meta["val"]
    site.user.replace_all_uses_with(node)
    builder.module.graph.erase_node(site.user)
    return node


def plain_convolution(builder: Builder, convolution: torch.fx.Node, weight: torch.fx.Node) -> torch.fx.Node:
    """The convolution of another weight, its stride, padding and dilation in numbers for each axis: neither quantizer nor kernel knows `padding="same"`."""
    args = convolution.args
    kernel = args[1].meta["val"].shape[2:]
    padded = convolution.target in PADDED
    bias, stride, padding, dilation, groups = (*args[2:], *(None, [1], "valid" if padded else [0], [1], 1)[len(args) - 2 :])
    stride, dilation = per_axis(stride, kernel), per_axis(dilation, kernel)
    x = args[0]
    if padded:
        totals = [(size - 1) * step if padding == "same" else 0 for size, step in zip(kernel, dilation, strict=True)]
        if any(total % 2 for total in totals):  # the odd element goes behind, which no symmetric number says
            x = builder.call(aten.pad.default, x, [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)])
            totals = [0] * len(totals)
        padding = [total // 2 for total in totals]
    return builder.call(PADDED.get(convolution.target, convolution.target), x, weight, bias, stride, per_axis(padding, kernel), dilation, groups)


def per_axis(values: int | list[int], kernel: tuple[int, ...]) -> list[int]:
    """One value for each kernel axis, where the graph may say one for all."""
    given = [values] if isinstance(values, int) else list(values)
    return given * len(kernel) if len(given) == 1 else given
