"""This machine's CPU."""

from compress.errors import Refused
from evaluators.environment import cores, environment
from evaluators.worker import Worker

__all__ = ["environment", "refuse", "side_by_side", "start"]


def start(threads: int) -> Worker:
    return Worker(threads)


def side_by_side(threads: int) -> int:
    return max(1, cores() // threads)


def refuse(runtime: str, threads: int) -> None:
    if threads > cores():
        raise Refused(f"{threads} threads were asked for; this process may use {cores()} core(s)")
