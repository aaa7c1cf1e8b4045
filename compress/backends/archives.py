"""What is asked of a zip archive before anything is taken out of it."""

import zipfile
from pathlib import Path, PurePosixPath

from compress.errors import InputError

LARGEST_RATIO = 100  # of the unpacked bytes to the file's own: float weights hardly shrink
SMALL = 1 << 26  # bytes that any archive may unpack to


def check_archive(path: Path) -> None:
    """InputError for a file that is no zip archive, unpacks to much more than it holds, or has members outside of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole zip archive, which {path.suffix} files are: {error}") from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > SMALL and unpacked > LARGEST_RATIO * size or sum(member.compress_size for member in members) > size:
        raise InputError(f"{path} unpacks {size:,} bytes to {unpacked:,}, which no model's weights do: such an archive is not opened")
    outside = [m.filename for m in members if m.filename.startswith("/") or ".." in PurePosixPath(m.filename.replace("\\", "/")).parts]
    if outside:
        raise InputError(f"{path} has members that point outside of it ({outside[0]!r}): such an archive is not opened")
