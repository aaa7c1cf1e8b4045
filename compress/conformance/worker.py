"""One peer in a process of its own: `python -m compress.conformance.worker NAME` prints its cells as JSON."""

import json
import sys
from dataclasses import asdict
from importlib.metadata import version

import numpy as np

from compress.conformance.golden import VECTORS
from compress.conformance.matrix import CannotTake, Cell, compare
from compress.conformance.peers import PEERS, Claim
from compress.errors import InputError, MissingExtra


def examine(name: str) -> dict:
    """{"version", "rows": [{"preset", "how", "reason", "cells": {vector: cell}}]}, or {"missing": text} where the library is not installed."""
    try:
        peer = PEERS.load(name)
    except MissingExtra as error:
        return {"missing": str(error)}
    vectors = {label: make() for label, make in VECTORS.items()}
    return {"version": version(peer.PACKAGE), "rows": [row(claim, vectors) for claim in peer.CLAIMS]}


def row(claim: Claim, vectors: dict[str, np.ndarray]) -> dict:
    cells = {label: asdict(cell(claim, values)) for label, values in vectors.items()}
    return {"preset": claim.preset, "how": claim.how, "reason": claim.told, "cells": cells}


def cell(claim: Claim, values: np.ndarray) -> Cell:
    try:
        theirs = claim.ask(values.copy())
        if np.isnan(theirs.decoded).all():
            return Cell("NO ANSWER")
        return compare(values, claim.format(values.dtype), theirs)
    except CannotTake as error:
        return Cell("cannot take", detail=str(error))
    except InputError as error:
        return Cell("cannot take", detail=f"this project: {error}")


if __name__ == "__main__":
    answer = examine(sys.argv[1])
    print("\n" + json.dumps(answer))  # on a line of its own: libraries print too
