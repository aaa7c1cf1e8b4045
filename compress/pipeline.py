"""open → plan → compress: from a model to exact numbers, before any runtime is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.backends import BACKENDS, FILES, open_model
from compress.card import Card
from compress.errors import InputError
from compress.network import Network
from compress.numerics import Encoded, encode
from compress.numerics.given_scales import encode_at
from compress.plan import Plan, plan
from compress.recipe import Recipe
from compress.samples import Data, samples
from compress.training import Training
from compress.work import Kept, Means, Progress, Work


@dataclass(frozen=True, eq=False)
class Compressed:
    """A network with the exact numbers that every exporter will write.

    network      as the recipe's steps left it: pruned, clustered and trained weights in float, before they are rounded
    encoded      the weights that get a format
    calibration  the data that exporters observe to fit activation ranges; None where the recipe needs none
    kept         what every step promised, as it was checked after each later step and on the encoded weights
    card         what a file is to say beside its numbers; `exporters.export` sets it
    """

    network: Network
    recipe: Recipe
    plan: Plan
    encoded: Mapping[str, Encoded]
    calibration: Data | None
    kept: tuple[Kept, ...] = ()
    card: Card | None = None

    def simulate(self) -> Network:
        """The network computing in float with the decoded weights: what the numbers cost in accuracy, without any runtime."""
        return self.network.with_weights({name: encoded.decode() for name, encoded in self.encoded.items()})


def compress(
    model: Any,
    recipe: Recipe | str,
    *,
    calibration: Data | None = None,
    inputs: Data | None = None,
    training: Training | None = None,
    checkpoints: Path | str | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """The model's weights as the recipe says; the model itself is left as it is.

    model        a torch.nn.Module, a Keras model, an opened Network, or what `open_model` takes
    calibration  samples for static activation ranges and for saliencies that look at inputs; see compress.samples.Data
    inputs       one example batch, where there is no calibration data and the model does not know its own input shapes
    training     inputs and labels, where the recipe has steps that train
    checkpoints  a folder where trainings are kept while they run and after: the same call goes on from there
    progress     called with (step's name, optimizer step, of how many, loss)

    RecipeError, InputError (NaN weights are named; empty calibration), BrokenInvariant, MissingExtra.
    """
    recipe = Recipe.load(recipe)
    network = open_model(model, inputs=calibration if inputs is None else inputs)
    decided = plan(network.weights(), recipe)
    need_data(recipe, decided, network, calibration, training)
    work = Work(network, network, recipe, decided, Means(calibration, training, Path(checkpoints) if checkpoints else None, progress))
    for index, step in enumerate(recipe.steps):
        work = step.apply(work, index).checked(index)
    weights, scales = work.network.weights(), work.scales
    encoded = {}
    for name, decision in work.plan.compressed.items():
        try:
            encoded[name] = encode_at(weights[name].value, decision.format, scales[name]) if name in scales else encode(weights[name].value, decision.format)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    promised = [d.name for d in work.plan.decisions if d.name in encoded and (d.prune or d.cluster)]
    work = work.checked(len(recipe.steps), {name: encoded[name].decode() for name in promised})
    return Compressed(work.network, recipe, work.plan, encoded, calibration if decided.static else None, work.kept)


def need_data(recipe: Recipe, decided: Plan, network: Network, calibration: Data | None, training: Training | None) -> None:
    """InputError where a step needs data that was not given, or what the framework lacks, before any work."""
    if decided.static:
        if calibration is None:
            raise InputError(f"recipe {recipe.name!r} has static activations: give `calibration`, some 100 typical inputs")
        next(samples(calibration, network.inputs))
    for index, step in enumerate(recipe.steps):
        needs = {"trains": step.train, "takes channels out": step.kind == "channels", "looks at what layers see": getattr(step, "needs_moments", False)}
        wanted = next((words for words, needed in needs.items() if needed), None)
        if wanted and network.framework in FILES:
            about = BACKENDS.entries[network.framework].about
            raise InputError(f"recipe {recipe.name!r}, steps.{index} {wanted}, and {about} only compute: give the model that the file was made from")
        if step.kind == "cluster" and (reason := step.untrainable(network.framework)):
            raise InputError(f"recipe {recipe.name!r}, steps.{index}: {reason}")
    trains = [f"steps.{index}" for index, step in enumerate(recipe.steps) if step.train]
    if trains and training is None:
        raise InputError(f"recipe {recipe.name!r} trains ({', '.join(trains)}): give `training`, inputs with their labels")
