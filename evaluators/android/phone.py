"""A device as a place to take times: programs run on chosen cores, cool before, and what a phone did while it held itself back is not kept."""

import time
from collections.abc import Sequence
from typing import Any

from compress.errors import Unreachable
from evaluators.android.device import Device, connect
from evaluators.android.facts import ASK, HEAT, Facts, chosen, parse

PHONE = "COMPRESSKIT_PHONE"  # variable of a measuring process: its target's document, as JSON
LOOK_SECONDS = 2.0  # between two looks at a phone that is too warm


def facts(device: Device) -> Facts:
    return parse(device.shell(ASK).output)


class Phone:
    """`target` is an `Adb` document. Unreachable where the device is not there, or stays throttled."""

    def __init__(self, target: Any, threads: int):
        self.target, self.device = target, connect(target.serial)
        self.cores = chosen(target.cores, threads, facts(self.device).cores)

    def run(self, words: Sequence[str]) -> str:
        """What a program prints that began on a phone that was not throttled and ended on one."""
        self.cool()
        output = self.device.run(words, self.target.limit_seconds, self.cores)
        reason = self.throttled()
        if reason:
            raise Unreachable(f"{self.device.serial} throttled while it was measured: {reason}. {ADVICE}")
        return output

    def cool(self) -> None:
        """Rests as long as the target says, and longer, up to its patience, where the phone is throttled."""
        time.sleep(self.target.cool_seconds)
        end = time.monotonic() + self.target.patience_seconds
        while reason := self.throttled():
            if time.monotonic() >= end:
                raise Unreachable(f"{self.device.serial} is throttled, and was after {self.target.patience_seconds:g} s of rest: {reason}. {ADVICE}")
            time.sleep(min(LOOK_SECONDS, self.target.patience_seconds))

    def throttled(self) -> str:
        return parse(self.device.shell(HEAT).output).throttled(self.cores)


ADVICE = "Take it out of its case, off the charger and out of battery saver, let it cool, and run the same command again"
