"""Operators of two arms timed side by side, each in a process of its own, and what this machine reaches at best."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from evaluators.operators import OperatorTime, from_json, medians, to_json
from evaluators.worker import Worker

ROUNDS = 4  # float32, arm, arm, float32, and the same again
SECONDS = 0.4  # about, of one arm in one round
FEWEST_RUNS, MOST_RUNS = 3, 30


class Unprofiled(Exception):
    """Why there are no times, in words."""


def call(worker: Worker, function: str, *arguments: Any, limit: float) -> Any:
    outcome = worker.call(f"evaluators.operators:{function}", *arguments, limit=limit)
    if outcome.status != "done":
        raise Unprofiled(outcome.cause if outcome.status == "refused" else f"the profile failed: {outcome.cause}")
    return outcome.value


def profiles(arms: Mapping[str, tuple], run_ms: Mapping[str, float], threads: int, limit: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """JSON: the operators of each arm, medians over interleaved rounds. Unprofiled where the runtime has no profiler or a process fails.

    arms    arguments of `evaluators.operators:profile` by name, without the number of runs
    run_ms  about how long a run of each takes
    """
    rounds: dict[str, list[list[OperatorTime]]] = {name: [] for name in arms}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(threads)) for name in arms}
        for number in range(ROUNDS):
            for name in list(arms)[:: -1 if number % 2 else 1]:
                tell(f"operators of {name}, round {number + 1} of {ROUNDS}")
                runs = min(max(round(1000 * SECONDS / run_ms[name]), FEWEST_RUNS), MOST_RUNS)
                rounds[name].append(from_json(call(workers[name], "profile", *arms[name], runs, limit=limit)))
    return {name: to_json(medians(found)) for name, found in rounds.items()}


def ceilings(baseline: tuple, threads: int, limit: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """JSON: this machine's rates (`machine`), multiply-adds of a run of float32 (`multiply_adds`), or why they are not known (`uncounted`)."""
    tell("what this machine reaches at best")
    with Worker(threads) as worker:
        machine = call(worker, "machine", threads, limit=limit)
        try:
            return {"machine": machine, "multiply_adds": call(worker, "multiply_adds", *baseline, limit=limit), "uncounted": ""}
        except Unprofiled as error:
            return {"machine": machine, "multiply_adds": None, "uncounted": str(error)}
