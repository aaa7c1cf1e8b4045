"""This project's code, as a board gets it."""

import hashlib
import zipfile
from io import BytesIO
from pathlib import Path

import compress
import evaluators

EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first date: equal files give equal bytes


def code() -> tuple[str, bytes]:
    """The sha256 and the bytes of a zip file with every module that a measuring process could import."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in (compress, evaluators):
            root = Path(package.__file__).parent
            for path in sorted(root.rglob("*.py")):
                archive.writestr(zipfile.ZipInfo(path.relative_to(root.parent).as_posix(), EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return hashlib.sha256(packed.getvalue()).hexdigest(), packed.getvalue()
