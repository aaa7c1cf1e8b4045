"""open → plan → compress: from a model to exact numbers, before any runtime is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.backends import open_model
from compress.errors import InputError
from compress.network import Network
from compress.numerics import Encoded, encode
from compress.plan import Plan, plan
from compress.recipe import Recipe
from compress.samples import Data, samples


@dataclass(frozen=True, eq=False)
class Compressed:
    """A network with the exact numbers that every exporter will write.

    calibration  the data that exporters observe to fit activation ranges; None where the recipe needs none
    """

    network: Network
    recipe: Recipe
    plan: Plan
    encoded: Mapping[str, Encoded]
    calibration: Data | None

    def simulate(self) -> Network:
        """The network computing in float with the decoded weights: what the numbers cost in accuracy, without any runtime."""
        return self.network.with_weights({name: encoded.decode() for name, encoded in self.encoded.items()})


def compress(model: Any, recipe: Recipe | str, *, calibration: Data | None = None, inputs: Data | None = None) -> Compressed:
    """The model's weights encoded as the recipe says; the model itself is left as it is.

    model        a torch.nn.Module, a Keras model, an opened Network, or what `open_model` takes
    calibration  samples for static activation ranges; see compress.samples.Data
    inputs       one example batch, where there is no calibration data and the model does not know its own input shapes

    RecipeError, InputError (NaN weights are named; empty calibration), MissingExtra.
    """
    recipe = Recipe.load(recipe)
    network = model if hasattr(model, "with_weights") else open_model(model, inputs=calibration if inputs is None else inputs)
    weights = network.weights()
    decided = plan(weights, recipe)
    if decided.static:
        if calibration is None:
            raise InputError(f"recipe {recipe.name!r} has static activations: give `calibration`, some 100 typical inputs")
        next(samples(calibration, network.inputs))
    encoded = {}
    for name, decision in decided.compressed.items():
        try:
            encoded[name] = encode(weights[name].value, decision.format)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return Compressed(network, recipe, decided, encoded, calibration if decided.static else None)
