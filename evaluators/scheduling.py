"""Runs the pieces of a study that are not there yet: exports and answers side by side on the cores, then latency alone."""

import heapq
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compress import __version__
from compress.errors import CompressError, Refused
from evaluators import progress as progresses
from evaluators.dataset import is_whole
from evaluators.derive import load_results
from evaluators.environment import cores, environment, versions
from evaluators.estimating import known
from evaluators.exporting import ARTIFACTS, Column, Ready, export_lane
from evaluators.latency_groups import latency_groups
from evaluators.metrics import AT_HOME, METRICS, SCORED
from evaluators.results import Results
from evaluators.runtimes import RUNTIMES
from evaluators.sources import fingerprint
from evaluators.store import Claim, Piece, Store, identity, now
from evaluators.study import Label, Planned, Study, UserScore, chosen, matrix
from evaluators.targets import Target, open_target
from evaluators.tasks import keeper
from evaluators.tasks.outputs import named
from evaluators.worker import Outcome, Worker


class Stopped(Exception):
    """Work that another thread's failure, or Ctrl-C, made pointless."""


def run_study(study: Study, folder: Path, command: str, progress: progresses.Progress | None, export: str, only: Sequence[str]) -> Results:
    arms = chosen(list(matrix(study, export)), only)
    with Claim(folder), Store(folder) as store:
        run = Run(study, arms, store, progress or progresses.automatic(), export, command)
        run.progress.begin(f"study {study.name}", [arm.id for arm in arms])
        try:
            run.everything()
        finally:
            run.finish()
    return load_results(folder)


class Run:
    """One call of `compare`: what is shared by the threads that drive measuring processes."""

    def __init__(self, study: Study, arms: list[Planned], store: Store, progress: progresses.Progress, export: str, command: str):
        self.study, self.arms, self.store, self.progress, self.export, self.command = study, arms, store, progress, export, command
        self.home, self.targets = open_target("cpu"), study.opened_targets()
        self.started, self.begun = time.perf_counter(), False
        self.guard, self.stopping, self.workers = threading.Lock(), threading.Event(), set[Worker]()
        self.waiting: list[tuple[int, Ready]] = []  # a heap of arms that have an artifact and no answers yet, by their place in the study
        self.ready: dict[str, Ready] = {}
        self.room = {target: threading.Semaphore(target.side_by_side(self.threads_on(target))) for target in (self.home, *self.targets.values())}
        # before any thread: CPython below 3.11.8 counts the depth of all threads' parsers in one place (python/cpython#106905), np.load's among them
        self.contents = {reference: fingerprint(reference, study.folder) for reference in study.references()}
        store.keep_arms({arm.id: self.described(arm) for arm in arms})
        for left in (store.folder / ARTIFACTS).glob(".*-*"):  # half-written files of a run that was killed
            shutil.rmtree(left)

    def described(self, arm: Planned) -> dict[str, Any]:
        names = {"model": arm.model, "recipe": arm.recipe.name, "recipe_id": arm.recipe.id, "target": arm.target}
        column = {"label": arm.label.name, "runtime": arm.label.runtime, "exporter": arm.label.exporter}
        target = self.targets[arm.target]
        pieces = ["export", *target.metrics, *([] if target.untimed else ["latency"])]
        where = {"untimed": target.untimed, "pieces": pieces}
        return names | column | where | {"baseline": not arm.recipe.steps, "threads": self.threads(arm), "task": self.study.task_document}

    def threads(self, arm: Planned) -> int:
        return self.threads_on(self.targets[arm.target])

    def threads_on(self, target: Target) -> int:
        return target.thread_count(self.study.threads)

    # pieces

    def piece(self, kind: str, key: str, owner: str, work: Callable[[], Any], facts: Callable[[Any], tuple[dict, dict]]) -> Piece:
        """A piece that is there already, or that is worked out and kept now. `facts` turns a value into (facts, arrays)."""
        return self.store.settled(key) or self.keep(kind, key, owner, work(), facts)

    def keep(self, kind: str, key: str, owner: str, outcome: Any, facts: Callable[[Any], tuple[dict, dict]]) -> Piece:
        if self.stopping.is_set():
            raise Stopped
        found = facts(outcome.value) if outcome.status == "done" else ({}, {})
        piece = Piece(key, kind, owner, outcome.status, outcome.cause, outcome.trace, outcome.seconds, *found)
        self.store.keep(piece)
        return piece

    def fresh(self, function: str, *arguments: Any, start: Callable[[], Worker] | None = None) -> Any:
        """The outcome of one call in a process of its own; its seconds include starting that."""
        self.begin_work()
        with self.worker(start) as worker:
            return worker.call(function, *arguments, limit=self.study.limit_seconds)

    @contextmanager
    def worker(self, start: Callable[[], Worker] | None = None):
        """A process that Ctrl-C ends too, also where it comes while the process starts."""
        with start() if start else Worker(self.study.threads) as worker:
            with self.guard:
                if self.stopping.is_set():
                    raise Stopped
                self.workers.add(worker)
            try:
                yield worker
            finally:
                with self.guard:
                    self.workers.discard(worker)

    def begin_work(self) -> None:
        """Notes when and where, the first time that this run measures anything: one that finds everything done leaves no trace."""
        with self.guard:
            if self.begun:
                return
            self.begun = True
        seen = environment()
        for target in self.targets.values():
            seen |= target.environment()
        self.store.keep_facts(created=self.store.fact("created") or now(), environment=seen)

    def finish(self) -> None:
        if self.begun:
            self.clean_up()
        self.progress.end()
        if self.begun:
            self.store.keep_facts(wall_seconds=self.store.fact("wall_seconds", 0.0) + time.perf_counter() - self.started)

    def clean_up(self) -> None:
        for name, target in self.targets.items():
            try:
                target.clean_up()
            except CompressError as error:
                self.progress.say(f"{name} could not be cleaned up: {error}")

    # the order of work

    def everything(self) -> None:
        self.store.keep_facts(study=self.study.name, command=self.command, settings=self.study.model_dump(mode="json"))
        self.store.keep_facts(fitted={name: known(target) for name, target in self.targets.items() if target.untimed})
        slots = max(1, cores() // self.study.threads)
        with self.pool(slots) as pool:
            columns = {label.name: pool.submit(self.column, label) for label in {arm.label for arm in self.arms}}
            data = {model: pool.submit(self.data, model) for model in self.study.models}
            finish(columns.values())
            lanes = self.lanes({name: future.result() for name, future in columns.items()})
            measured: list[Future] = []

            def hand_on(ready: Ready) -> None:
                with self.guard:
                    heapq.heappush(self.waiting, (self.arms.index(ready.arm), ready))
                measured.append(pool.submit(self.measure_next))

            exporting = [pool.submit(export_lane, self, recipes, data[model], hand_on) for model, recipes in lanes]
            finish(exporting)
            finish(measured)
        latency_groups(self)

    @contextmanager
    def pool(self, slots: int):
        """Threads that drive processes. After a failure, or Ctrl-C, the processes are ended and nothing more is kept."""
        pool = ThreadPoolExecutor(slots)
        try:
            yield pool
        except BaseException:
            self.stopping.set()
            with self.guard:
                for worker in self.workers:
                    worker.process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def column(self, label: Label) -> Column:
        runtime, exporter = label.runtime, label.exporter
        if runtime is None:
            key = identity("exporter", exporter, self.export, versions(), __version__)
            call = "evaluators.artifacts:exporter_facts", self.export, exporter
            piece = self.piece("exporter", key, label.name, lambda: self.fresh(*call), lambda value: (value, {}))
            if piece.status != "done":
                return Column(label, "", exporter, "", piece)
            runtime = piece.facts["runtime"]
        key = identity("runtime", runtime, self.runtime_versions(runtime), self.study.threads, self.home.identity())
        call = "evaluators.metrics.memory:baseline", runtime
        piece = self.piece("runtime", key, runtime, lambda: self.fresh(*call), lambda value: (value, {}))
        return Column(label, runtime, exporter or piece.facts.get("exporter", ""), piece.facts.get("suffix", ""), piece)

    def runtime_versions(self, runtime: str) -> dict[str, str]:
        return versions(RUNTIMES.entries[runtime].extra or "") | {"compresskit": __version__}

    def data(self, model: str) -> Piece:
        reference = self.study.data(model)[1]
        task = keeper(self.study.task_document)
        key = identity("data", self.contents[reference], self.study.samples, task)
        place = self.store.folder / "data" / key
        piece = self.store.settled(key)
        if piece and piece.status == "done" and is_whole(place, piece.facts["files"]):
            return piece
        outcome = self.fresh("evaluators.dataset:prepare", reference, str(self.study.folder), self.study.samples, str(place), task)
        return self.keep("data", key, reference, outcome, lambda value: (value, {}))

    def data_folder(self, data: Piece) -> str:
        return str(self.store.folder / "data" / data.key)

    def lanes(self, columns: dict[str, Column]) -> list[tuple[str, dict[str, list[tuple[Planned, Column]]]]]:
        """A model and its arms by recipe, for every model and exporter."""
        found: dict[tuple[str, str], dict[str, list[tuple[Planned, Column]]]] = {}
        for arm in self.arms:
            column = columns[arm.label.name]
            self.store.link(arm.id, "runtime", column.piece.key)
            if column.piece.status == "done" and self.possible(arm, column):
                found.setdefault((arm.model, column.exporter), {}).setdefault(arm.recipe.name, []).append((arm, column))
            elif column.piece.status != "done":
                self.progress.stage(arm.id, column.piece.status, column.piece.cause)
        return [(model, recipes) for (model, _), recipes in found.items()]

    def possible(self, arm: Planned, column: Column) -> bool:
        try:
            self.targets[arm.target].refuse(column.runtime, self.threads(arm))
        except Refused as error:
            piece = Piece(identity("target", arm.id, str(error)), "target", arm.id, "refused", str(error))
            self.store.keep(piece)
            self.close(arm, "target", piece)
            return False
        return True

    def close(self, arm: Planned, kind: str, piece: Piece) -> None:
        self.store.link(arm.id, kind, piece.key)
        if piece.status != "done":
            self.progress.stage(arm.id, piece.status, piece.cause)

    # accuracy and memory

    def measure_next(self) -> None:
        """Measures whichever arm with an artifact comes first in the study: who puts a slow one early gets it done beside the others."""
        with self.guard:
            ready = heapq.heappop(self.waiting)[1]
        arm = ready.arm
        self.close(arm, "data", ready.data)
        if ready.data.status != "done":
            return
        for kind in self.targets[arm.target].metrics:
            piece = self.store.settled(self.metric_key(kind, ready)) or self.measured(kind, ready)
            self.close(arm, kind, piece)
            if piece.status != "done":
                return
        if self.targets[arm.target].untimed:
            self.progress.stage(arm.id, "done")
        else:
            self.progress.stage(arm.id, "ready")
            self.ready[arm.id] = ready

    def metric_key(self, kind: str, ready: Ready) -> str:
        target = self.targets[ready.arm.target]
        if kind in AT_HOME:
            return identity(kind, *self.setting(ready, self.home), target.sample_count(self.study.samples))
        own = [self.contents[self.study.task.score]] if kind in SCORED and isinstance(self.study.task, UserScore) else []
        return identity(kind, *self.setting(ready, target), *own)

    def setting(self, ready: Ready, target: Target) -> tuple:
        """What every measurement of an arm depends on."""
        runtime = ready.column.runtime
        given = ready.export.facts["artifact"]["sha256"], runtime, self.runtime_versions(runtime), ready.data.key
        return *given, target.thread_count(self.study.threads), target.identity()

    def measured(self, kind: str, ready: Ready) -> Piece:
        target = self.targets[ready.arm.target]
        where = self.home if kind in AT_HOME else target
        samples = target.sample_count(self.study.samples)
        with self.room[where]:  # another machine may have fewer cores than this one
            self.progress.stage(ready.arm.id, kind)
            start = partial(where.start, self.threads(ready.arm))
            outcome = self.fresh(f"{METRICS.entries[kind].module}:measure", *self.arguments(ready), samples, start=start)
        if kind in SCORED and isinstance(self.study.task, UserScore) and outcome.status == "done":
            outcome = self.scored(kind, outcome, ready)
        return self.keep(kind, self.metric_key(kind, ready), ready.arm.id, outcome, lambda value: value)

    def scored(self, kind: str, outcome: Outcome, ready: Ready) -> Outcome:
        """What the user's own function scores of an arm's outputs, here, wherever that ran; outputs stay where they are compared with this machine's."""
        facts, arrays = outcome.value
        if not named(arrays):
            return outcome
        own = self.fresh("evaluators.tasks.function:score", self.study.task.score, str(self.study.folder), arrays, self.data_folder(ready.data))
        value = (facts, {name: array for name, array in arrays.items() if kind != "accuracy"} | own.value) if own.status == "done" else None
        return replace(own, value=value, seconds=outcome.seconds + own.seconds)

    def arguments(self, ready: Ready) -> tuple:
        """What `measure` and `load` in a measuring process take first."""
        folder = str(self.store.folder / ARTIFACTS)
        return ready.export.facts["artifact"], folder, ready.column.runtime, self.threads(ready.arm), self.data_folder(ready.data)


def finish(futures: Iterable[Future]) -> None:
    """Waits for all of them and raises what the first of them raised."""
    for future in wait(list(futures), return_when="FIRST_EXCEPTION").done:
        future.result()
