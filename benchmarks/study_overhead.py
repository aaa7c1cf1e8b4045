"""Wall time of a study against the sum of its arms' own times."""

import tempfile
from pathlib import Path

from benchmarks.ratio import timed

STUDY = Path(__file__).parents[1] / "examples" / "digits" / "study.yaml"


def run():
    import evaluators

    with tempfile.TemporaryDirectory(prefix="compresskit-bench-") as folder:
        wall = timed(lambda: evaluators.compare(STUDY, folder))
        own = sum(sum(arm.seconds.values()) for arm in evaluators.load_results(Path(folder)).arms)
    ratio = wall / own
    yield "digits study, wall time / sum of its arms' own times", f"{ratio:.3f} ({wall:.0f} s / {own:.0f} s)", "at most 1.15", ratio <= 1.15
