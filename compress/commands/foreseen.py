"""What a study will do, before it does it: which arms can be written, how large they will be, and about how long it will take."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from compress.commands.shared import console, print_json, print_rows, telling

TRIALS = 3  # runs of the float model whose fastest stands for a sample


@dataclass(frozen=True)
class Foreseen:
    """An arm before any work.

    timed       whether its target has a clock that counts
    size_bytes  of the file without the model's graph; None where its exporter says nothing of it
    reason      why it is refused
    """

    id: str
    timed: bool
    size_bytes: int | None
    reason: str = ""


def foresee(study: Any, tell: Callable[[str], None]) -> Iterator[tuple[list[Foreseen], float]]:
    """For each model its arms, and the seconds that those that are timed will take by the float model's own time for a sample."""
    for model in study.models:
        tell(f"opening {model}")
        network, sample_seconds = opened(study, model)
        arms = list(arms_of(study, model, network, tell))
        timing, left = study.latency, sum(arm.timed and not arm.reason for arm in arms)
        block = max(timing.seconds, timing.runs * sample_seconds)
        yield arms, left * (study.samples * sample_seconds + timing.processes * (2 * timing.warmup_seconds + timing.blocks * block))


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


def arms_of(study: Any, model: str, network: Any, tell: Callable[[str], None]) -> Iterator[Foreseen]:
    import exporters
    from compress.errors import CompressError
    from evaluators.artifacts import EXPORT
    from evaluators.runtimes import RUNTIMES
    from evaluators.study import matrix

    files, targets, told = Files(network), study.opened_targets(), set()
    for arm in matrix(study, EXPORT):
        if arm.model != model:
            continue
        target = targets[arm.target]
        if arm.recipe.name not in told:
            told.add(arm.recipe.name)
            tell(f"planning {arm.recipe.name}")
        try:
            exporter = arm.label.exporter or RUNTIMES.load(arm.label.runtime).EXPORTER
            target.refuse(arm.label.runtime or exporters.EXPORTERS.load(exporter).RUNTIME, study.threads)
            yield Foreseen(arm.id, not target.untimed, files.size_bytes(arm.recipe, exporter))
        except CompressError as error:
            yield Foreseen(arm.id, not target.untimed, None, str(error))


class Files:
    """What would be written of one network. Arms on several targets share a file, files of several exporters a plan."""

    def __init__(self, network: Any):
        self.network, self.weights = network, network.weights()
        self.plans: dict[str, Any] = {}
        self.sizes: dict[tuple[str, str], int | None] = {}

    def size_bytes(self, recipe: Any, exporter: str) -> int | None:
        """Of the file, as far as its exporter says it; Refused where there is none."""
        import exporters
        from compress.plan import plan

        if recipe.id not in self.plans:
            self.plans[recipe.id] = plan(self.weights, recipe)
        if (recipe.id, exporter) not in self.sizes:
            decided = self.plans[recipe.id]
            placed = exporters.placements(decided, exporter, self.network.framework, recipe.allow_float)
            self.sizes[recipe.id, exporter] = exporters.predicted_bytes(decided, exporter, placed)
        return self.sizes[recipe.id, exporter]


def show(study: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from evaluators.report import words
    from evaluators.report.reading import grouped

    with telling("reading the study") as tell:
        found = list(foresee(study, tell))
    arms, total = [arm for part, _ in found for arm in part], sum(took for _, took in found)
    if as_json:
        print_json({"arms": [asdict(arm) for arm in arms], "seconds": total})
        return
    print_rows(study.name, ["arm", "bytes predicted"], [(arm.id, words.megabytes(arm.size_bytes)) for arm in arms if not arm.reason])
    for reason, refused in grouped([arm for arm in arms if arm.reason], lambda arm: arm.reason).items():
        console.print(f"\n{len(refused)} refused: {reason}", markup=False, highlight=False)
        console.print(", ".join(arm.id for arm in refused), style="dim", markup=False, highlight=False)
    trains = [recipe.name for recipe in study.loaded_recipes() if recipe.trains]
    emulated = " and emulated arms" if not all(arm.timed for arm in arms) else ""
    console.print(
        f"\n{len(arms)} arms, {sum(bool(arm.reason) for arm in arms)} of them refused. Measuring takes about {words.seconds(total)}; "
        f"exports{emulated} come on top{', and the training of ' + ', '.join(trains) if trains else ''}. "
        "Sizes are without the model's own graph. Nothing was written.",
        highlight=False,
    )
