"""Amounts as people write them."""

import re

from compress.errors import InputError

BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(said: str) -> int:
    """Bytes of "24GB", "6 MB" or "1.5GiB". InputError for anything else."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(BYTES)})", said.strip())
    if not match or not float(match[1]):
        raise InputError(f"{said!r} is no amount of bytes: write it as 24GB, 16GiB or 500kB")
    return int(float(match[1]) * BYTES[match[2]])
