"""Static int8 through PT2E and the x86 quantizer, with the core's codes, scales and activation ranges instead of the quantizer's own."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer, get_default_x86_inductor_quantization_config

from compress import calibration
from compress.errors import ExportError, InputError
from compress.formats import StaticActivations
from exporters.torch_graph import Builder, aten

decomposed = torch.ops.quantized_decomposed
SMALLEST_SCALE = 2**-12 / 255  # of a tensor that calibration saw as zero everywhere


class CoreObserver(ObserverBase):
    """Lets the core's calibration decide a tensor's range: codes in int8, or in uint8, whose grid is the same."""

    def __init__(self, activations: StaticActivations, dtype: torch.dtype = torch.uint8, **_given_by_the_quantizer):
        super().__init__(dtype)
        self.core = calibration.observer(activations)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = torch.iinfo(dtype).min, torch.iinfo(dtype).max

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(x).all():
            raise InputError("calibration: an activation holds NaN or infinity; look at the inputs and the model")
        self.core.update(x.detach().numpy())
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.core.range()
        scale = np.float32(max((found.high - found.low) / 255, SMALLEST_SCALE))
        zero = int(np.clip(np.rint(-found.low / scale), 0, 255))
        return torch.tensor([scale]), torch.tensor([zero + self.quant_min])


class PlannedQuantizer(X86InductorQuantizer):
    """The x86 quantizer's configuration on exactly the planned operators, annotated one by one.

    Its own search for patterns misses operators that are not called from a module it knows (EfficientNet-Lite's padded convolutions), quantizes
    products and sums that no recipe names, and fuses sums into convolutions that oneDNN then refuses to run outside of Inductor.
    """

    def __init__(self, planned: set[str], activations: StaticActivations):
        super().__init__()
        self.planned = planned
        default = get_default_x86_inductor_quantization_config()
        observed = QuantizationSpec(
            dtype=torch.uint8,
            quant_min=0,
            quant_max=255,
            qscheme=torch.per_tensor_affine,
            is_dynamic=False,
            observer_or_fake_quant_ctr=CoreObserver.with_args(activations=activations),
        )
        self.config = QuantizationConfig(observed, observed, default.weight, default.bias, False)

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        for node in model.graph.nodes:
            if node.name in self.planned:
                helper = self._annotate_linear_node_helper if node.target is aten.linear.default else self._annotate_conv_node_helper
                helper(node, True, self.config)
        return model


def quantize_static(
    builder: Builder,
    sites: Mapping[str, str],
    quantizer: Quantizer,
    place: Callable[[Builder, torch.fx.Node, str], bool],
    batches: Iterable[tuple[torch.Tensor, ...]],
) -> torch.fx.GraphModule:
    """The module with every operator of `sites` (its name to its weight's name) computing in int8.

    `place` puts the core's numbers before an operator, and returns False where the quantizer left it in float all the same: ExportError names its weight.
    """
    prepared = prepare_pt2e(builder.module, quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    builder.module = convert_pt2e(prepared)
    left = [sites[node.name] for node in builder.module.graph.nodes if node.name in sites and not place(builder, node, sites[node.name])]
    missing = set(sites) - {node.name for node in builder.module.graph.nodes}
    left += [sites[name] for name in missing]
    if left:
        raise ExportError(f"PT2E left in float what the plan wants in static int8: {', '.join(sorted(set(left)))}")
    return builder.module


def place_codes(builder: Builder, node: torch.fx.Node, name: str) -> bool:
    """Puts the core's codes and scales before an operator; False where the quantizer did not quantize its weight and its input."""
    x, weight = node.args[:2]
    if x.target is not decomposed.dequantize_per_tensor.default or weight.target is not decomposed.dequantize_per_channel.default:
        return False
    stored = builder.store(name)
    outputs = builder.encoded[name].codes.shape[0]
    if "zero_points" not in stored.parts:
        stored.parts["zero_points"] = builder.register(name, "zero_points", torch.zeros(outputs, dtype=torch.int32))
    with builder.module.graph.inserting_before(weight):
        constants = [builder.part(name, part) for part in ("codes", "scales", "zero_points")]
    weight.args = (*constants, 0, -128, 127, torch.int8)
    stored.native.append("")
    return True
