"""Debian packages without installing them: apt with lists, cache and state of its own, unpacked into a folder. Needs no root and changes nothing else."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from compress.errors import CompressError, Unreachable

SUITE = "bookworm"  # the last whose qemu loads plugins, and whose Python the wheels are for
MIRROR = "COMPRESSKIT_DEBIAN_MIRROR"
KEYRINGS = tuple(Path("/usr/share/keyrings") / f"debian-archive-keyring.{ending}" for ending in ("pgp", "gpg"))
SUITES = "bullseye|bookworm|trixie|forky|sid|oldstable|stable|testing|unstable"
CONFIGURATION = """
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "{user}";
APT::Install-Recommends "false";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Languages "none";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
"""


def missing() -> list[str]:
    """What this machine lacks for it, in words."""
    tools = [f"{tool} (a Debian or Ubuntu system)" for tool in ("apt-get", "dpkg-deb", "dpkg", "setpriv") if not shutil.which(tool)]
    keys = [] if keyring() else ["Debian's signing keys (apt-get install debian-archive-keyring)"]
    if tools:
        return tools + keys
    return keys if mirrors() else [*keys, f"a Debian mirror: this machine's apt names none, so put its address into the variable {MIRROR}"]


def keyring() -> Path | None:
    return next((path for path in KEYRINGS if path.exists()), None)


def native() -> str:
    """dpkg's name of this machine's architecture."""
    return run("dpkg", "--print-architecture").strip()


def mirrors() -> list[str]:
    """Addresses of Debian mirrors: the variable's, or those that this machine's apt knows."""
    if MIRROR in os.environ:
        return [os.environ[MIRROR]]
    found = re.findall(rf"^'(\S+?)/*/dists/(?:{SUITES})/InRelease'", run("apt-get", "update", "--print-uris"), re.MULTILINE)
    return list(dict.fromkeys(found))


def run(*command: str, failure: type[CompressError] = Unreachable) -> str:
    """What a command prints. An error with its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise failure(f"`{Path(command[0]).name} {' '.join(word for word in command[1:] if '/' not in word)}` failed: {last}")
    return done.stdout


def unpack(packages: tuple[str, ...], architecture: str, work: Path, into: Path, tell: Callable[[str], None], suite: str = SUITE) -> dict[str, str]:
    """Downloads packages with all that they depend on, and unpacks them into `into`; their versions by name. Signatures and hashes are apt's to check."""
    work.mkdir(parents=True)
    configuration = work / "apt.conf"
    user = "root" if os.geteuid() == 0 else "_apt"  # root's cache cannot be entered by apt's own user
    configuration.write_text(CONFIGURATION.format(architecture=architecture, folder=work, user=user))
    (work / "status").touch()
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    apt = ("apt-get", "-c", str(configuration), "-q")
    tell(f"package lists of Debian {suite} for {architecture}")
    update(apt, architecture, work / "sources.list", suite)
    tell(f"packages for {architecture}: {', '.join(packages)} and what they need")
    run(*apt, "install", "--yes", "--download-only", *packages)
    found = {}
    for path in sorted((work / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", str(path), str(into))
        name, version, _ = path.name.split("_")
        found[name] = version.replace("%3a", ":")
    shutil.rmtree(work)
    return found


def update(apt: tuple[str, ...], architecture: str, sources: Path, suite: str) -> None:
    """Package lists from the first mirror that has the suite, signed by Debian."""
    failures = []
    for mirror in mirrors():
        sources.write_text(f"deb [arch={architecture} signed-by={keyring()}] {mirror} {suite} main\n")
        try:
            run(*apt, "update", "--error-on=any")
            return
        except Unreachable as error:
            failures.append(str(error))
    raise Unreachable(f"no mirror that this machine knows gives Debian {suite} for {architecture}; {MIRROR} can name another: {'; '.join(failures)}")
