"""What a study is doing now: a live table on a terminal, one line for each event elsewhere."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

COLOURS = {"done": "green", "refused": "yellow", "failed": "red", "waiting": "dim"}
FINAL = ("done", "refused", "failed")
TRAINING_SECONDS = 30.0  # between two lines of a log about one training
QUIET = ("exported", "ready")  # stages in which nothing happens: no line in a log


class Progress(Protocol):
    def begin(self, title: str, arms: Sequence[str]) -> None: ...

    def stage(self, arm: str, stage: str, detail: str = "") -> None:
        """A stage of an arm: exporting, training, exported, a metric, ready, loading, timing 2 of 6, and in the end done, refused or failed."""
        ...

    def say(self, text: str) -> None:
        """Something that concerns no single arm."""
        ...

    def end(self) -> None: ...


def automatic() -> Progress:
    console = Console(stderr=True, emoji=False)
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else TextProgress()


class TextProgress:
    """One line for each event, to a stream (standard error)."""

    def __init__(self, stream=None):
        self.stream, self.started = stream or sys.stderr, time.monotonic()
        self.trained: dict[str, float] = {}  # when a line about an arm's training was written last

    def begin(self, title: str, arms: Sequence[str]) -> None:
        self.say(f"{title}: {len(arms)} arms")

    def stage(self, arm: str, stage: str, detail: str = "") -> None:
        if stage == "training":
            if time.monotonic() - self.trained.get(arm, self.started) < TRAINING_SECONDS:
                return
            self.trained[arm] = time.monotonic()
        if stage not in QUIET and (not stage.startswith("timing") or stage.startswith("timing 1 ")):
            self.say(f"{arm}: {stage}{f': {in_short(detail)}' if detail else ''}")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", file=self.stream, flush=True)

    def end(self) -> None:
        self.stream.flush()


class LiveProgress:
    """A line for each arm. It is drawn when something happens and never by a clock, so it takes no time from a measurement."""

    def __init__(self, console: Console):
        self.console, self.guard = console, threading.Lock()
        self.live = Live(console=console, auto_refresh=False)
        self.title, self.note, self.started = "", "", time.monotonic()
        self.stages: dict[str, tuple[str, str]] = {}

    def begin(self, title: str, arms: Sequence[str]) -> None:
        self.title, self.started = title, time.monotonic()
        self.stages = {arm: ("waiting", "") for arm in arms}
        self.live.start()
        self.draw()

    def stage(self, arm: str, stage: str, detail: str = "") -> None:
        with self.guard:
            self.stages[arm] = stage, detail
            self.draw()

    def say(self, text: str) -> None:
        with self.guard:
            self.note = text
            self.draw()

    def draw(self) -> None:
        self.live.update(table(self.title, self.caption(), self.stages, self.console.height - 5), refresh=True)

    def caption(self) -> str:
        counts = Counter(stage for stage, _ in self.stages.values())
        ready = ", ".join(f"{counts[name]} {name}" for name in FINAL if counts[name])
        return f"{time.monotonic() - self.started:.0f} s · {ready or 'none ready'} of {len(self.stages)}{f' · {self.note}' if self.note else ''}"

    def end(self) -> None:
        with self.guard:
            self.draw()
            self.live.stop()


def table(title: str, caption: str, stages: Mapping[str, tuple[str, str]], height: int) -> Table:
    found = Table("arm", "stage", title=title, caption=caption, box=None, pad_edge=False, title_justify="left", caption_justify="left")
    for arm, (stage, detail) in fitting(stages, height):
        colour = COLOURS.get(stage, "cyan")
        found.add_row(arm, f"[{colour}]{stage}[/]" + (f" [dim]{escape(in_short(detail))}[/]" if detail else ""))
    return found


def fitting(stages: Mapping[str, tuple[str, str]], height: int) -> list[tuple[str, tuple[str, str]]]:
    """The arms that fit on the screen: those at work first, then those that ended badly, then the others, in the study's order."""

    def rank(arm: str) -> int:
        stage = stages[arm][0]
        return 2 if stage == "done" else 3 if stage == "waiting" else 1 if stage in FINAL else 0

    shown = set(sorted(stages, key=rank)[: max(height, 3)])
    return [(arm, stage) for arm, stage in stages.items() if arm in shown]


def escape(text: str) -> str:
    return text.replace("[", "\\[")


def in_short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:119]}…"
