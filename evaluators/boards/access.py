"""The way to a board: connections whose host key was verified, and in words what stands in the way of one."""

from dataclasses import dataclass
from pathlib import Path

import asyncssh

from compress.errors import Unreachable

SSH_PORT = 22
CONNECT_SECONDS = 20.0  # from the first packet to being logged in
KEEPALIVE_SECONDS, KEEPALIVES = 10.0, 3  # unanswered ones, after which the connection counts as lost


@dataclass(frozen=True)
class Access:
    """What the document of a target says about its board, without pydantic, which takes half a second to import."""

    host: str
    port: int | None
    key: str
    known_hosts: str
    python: str
    cores: list[int]


class Client(asyncssh.SSHClient):
    """Asked for the host keys that known_hosts does not have: trusts none of them, and says which it was."""

    def __init__(self, known: asyncssh.SSHKnownHosts, file: Path):
        self.known, self.file, self.cause = known, file, ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        other = next((old for old in self.known.match(host, addr, port)[0] if old.algorithm == key.algorithm), None)
        shown = f"{key.get_fingerprint()} ({key.algorithm.decode()})"
        compare = "compare it with what `ssh-keygen -lf` says of that board's /etc/ssh/ssh_host_*_key.pub, at the board itself"
        place = host if port == SSH_PORT else f"[{host}]:{port}"
        add = f"`ssh-keyscan -p {port} {host} >> {self.file}`"
        if other is None:
            self.cause = f"the host key of {place} is not in {self.file}. It shows {shown}: {compare}, and add it with {add}"
        else:
            self.cause = (
                f"the host key of {place} has changed: {self.file} has {other.get_fingerprint()}, and it shows {shown}. Something else may be answering "
                f"in its place. If the board was set up anew, {compare}; then forget the old one with `ssh-keygen -R '{place}' -f {self.file}` and add the "
                f"new one with {add}"
            )
        return False


def private_key(path: str) -> asyncssh.SSHKey:
    try:
        return asyncssh.read_private_key(Path(path).expanduser())
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise Unreachable(f"the key {path} cannot be used: {error}; one with a passphrase is ssh-agent's to keep, and `key` is left out then") from error


async def connect(settings: Access) -> asyncssh.SSHClientConnection:
    """A connection as ~/.ssh/config and the settings say. Unreachable says what to do where there is none."""
    user, _, host = settings.host.rpartition("@")
    file = Path(settings.known_hosts).expanduser()
    given = {"port": settings.port, "username": user, "client_keys": settings.key and [private_key(settings.key)]}
    client = None
    try:
        known = asyncssh.read_known_hosts(str(file)) if file.exists() else asyncssh.import_known_hosts("")
        client = Client(known, file)
        return await asyncssh.connect(
            host,
            known_hosts=known,
            client_factory=lambda: client,
            connect_timeout=CONNECT_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVES,
            **{name: value for name, value in given.items() if value},
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise Unreachable(client.cause or f"the host key of {host} is not to be trusted: {error.reason}") from error
    except asyncssh.PermissionDenied as error:
        key = f"the key {settings.key}" if settings.key else "the keys of this user and of ssh-agent"
        raise Unreachable(f"{settings.host} does not accept {key}: `ssh-copy-id {settings.host}` gives it one; `key` in targets.yaml names another") from error
    except TimeoutError as error:
        raise Unreachable(f"{settings.host} does not answer within {CONNECT_SECONDS:g} seconds: is it on, and in this network?") from error
    except (asyncssh.Error, ValueError, OSError) as error:
        raise Unreachable(f"{settings.host} cannot be reached: {error}") from error
