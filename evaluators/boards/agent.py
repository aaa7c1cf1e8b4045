"""What answers on a board: it takes files and calls from the ssh channel, and a measuring process like any other runs the calls.

When the channel closes, whoever closed it, the measuring process is ended and its folder removed.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, BinaryIO

from compress.errors import CompressError
from evaluators.boards.place import Place, own_place
from evaluators.boards.wire import receive, send
from evaluators.worker import Outcome, Worker, here


def main(cache: str, threads: int, cores: list[int]) -> None:
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    with own_place(Path(cache)) as place:
        os.chdir(place.folder)  # so that calls name folders on the board without knowing where it has them
        with Worker(threads, replace(here(), cores=cores)) as worker:
            while (request := receive(incoming)) is not None:
                answer(place, worker, request, incoming, outgoing)


def answer(place: Place, worker: Worker, request: list, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """One answer for each request: which files are lacking, that a file was kept, or a call's outcome after what it told."""
    match request:
        case ["files", files]:
            outcome = tried(lambda: place.lacking(files))
        case ["keep", name, digest, size]:
            outcome = tried(lambda: place.keep(name, digest, size, incoming))
        case ["call", function, arguments]:
            outcome = called(worker, function, arguments, incoming, outgoing)
    if outcome is None:
        return
    try:
        send(outgoing, vars(outcome))
    except (TypeError, ValueError) as error:
        send(outgoing, vars(Outcome("failed", cause=str(error))))


def tried(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome("done", work())
    except (OSError, CompressError) as error:
        return Outcome("failed", cause=str(error))


def called(worker: Worker, function: str, arguments: list, incoming: BinaryIO, outgoing: BinaryIO) -> Outcome | None:
    """The outcome of a call, None where the channel was closed meanwhile: nothing else comes through it before the answer."""
    worker.ask(function, *arguments)
    while incoming not in wait([incoming, worker.pipe]):
        try:
            found = worker.pipe.recv()
        except (EOFError, OSError):
            return worker.died()
        if isinstance(found, Outcome):
            return found
        send(outgoing, {"told": found})
    return None
