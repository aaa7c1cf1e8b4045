"""What a study will do, before it does it: which arms can be written, how large they will be, and about how long it will take."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from compress.commands.shared import console, print_json, print_rows

TRIALS = 3  # runs of the float model whose fastest stands for a sample


@dataclass(frozen=True)
class Foreseen:
    """An arm before any work. size_bytes: of the file without the model's graph; None where its exporter says nothing of it. reason: why it is refused."""

    id: str
    size_bytes: int | None
    reason: str = ""


def foresee(study: Any) -> Iterator[tuple[list[Foreseen], float]]:
    """For each model its arms, and the seconds that measuring them will take by the float model's own time for a sample."""
    for model in study.models:
        network, sample_seconds = opened(study, model)
        arms = list(arms_of(study, model, network))
        timing, left = study.latency, sum(not arm.reason for arm in arms)
        block = max(timing.seconds, timing.runs * sample_seconds)
        yield arms, left * (study.samples * sample_seconds + 2 * timing.warmup_seconds + timing.blocks * block)


def opened(study: Any, model: str) -> tuple[Any, float]:
    """A model's network, and the seconds that it takes for a sample."""
    from compress.backends import open_model
    from compress.references import load_data, load_model
    from compress.samples import samples

    calibration, test = study.data(model)
    data = load_data(calibration, study.folder)[0] if calibration else load_data(test, study.folder, limit=1)[0]
    network = open_model(load_model(study.models[model].open, study.folder), inputs=data)
    (sample,) = islice(samples(data, network.inputs), 1)
    return network, min(seconds(network, sample) for _ in range(TRIALS))


def seconds(network: Any, sample: Any) -> float:
    started = time.perf_counter()
    network.run(sample)
    return time.perf_counter() - started


def arms_of(study: Any, model: str, network: Any) -> Iterator[Foreseen]:
    import exporters
    from compress.errors import CompressError
    from compress.plan import plan
    from evaluators.artifacts import EXPORT
    from evaluators.runtimes import RUNTIMES
    from evaluators.study import matrix

    weights, plans = network.weights(), {}
    for arm in matrix(study, EXPORT):
        if arm.model != model:
            continue
        exporter = arm.label.exporter or RUNTIMES.load(arm.label.runtime).EXPORTER
        try:
            decided = plans.setdefault(arm.recipe.id, plan(weights, arm.recipe))
            placed = exporters.placements(decided, exporter, network.framework, arm.recipe.allow_float)
            study.opened_targets()[arm.target].refuse(arm.label.runtime or exporters.EXPORTERS.load(exporter).RUNTIME, study.threads)
            yield Foreseen(arm.id, exporters.predicted_bytes(decided, exporter, placed))
        except CompressError as error:
            yield Foreseen(arm.id, None, str(error))


def show(study: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from evaluators.report import words

    found = list(foresee(study))
    arms, total = [arm for part, _ in found for arm in part], sum(took for _, took in found)
    if as_json:
        print_json({"arms": [asdict(arm) for arm in arms], "seconds": total})
        return
    rows = [(arm.id, words.megabytes(arm.size_bytes) if not arm.reason else "", arm.reason) for arm in arms]
    print_rows(study.name, ["arm", "bytes predicted", "refused, because"], rows)
    trains = [recipe.name for recipe in study.loaded_recipes() if recipe.trains]
    console.print(
        f"{len(arms)} arms, {sum(bool(arm.reason) for arm in arms)} of them refused. Measuring takes about {words.seconds(total)}; exports come on top"
        f"{', and the training of ' + ', '.join(trains) if trains else ''}. Sizes are without the model's own graph. Nothing was written.",
        highlight=False,
    )
