"""A board over ssh, or this machine itself: run the agent there, put files there, get files back.

The system's ssh does the talking, so that ssh_config, jump hosts, agents and known_hosts simply work. One
connection is kept open (ControlMaster), since a new one takes seconds. The agent travels with the first call
and stays under its hash, so both sides are always of one version. Files are kept on the board by their hash:
what has arrived is not sent again, and a copy that was cut off goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    TypeVar,
)

from ..artifact import sha256_of, writing
from ..errors import ArtifactError, DeadweightError, ModelError, TargetError
from ..onnx_file import weight_names
from ..progress import Progress
from .exchange import answer, spoken
from .received_files import pieces
from .ssh_errors import HELLO, connection_error, keep_command
from .zipapp import agent_bytes, agent_sha256

"""Told how much is done, of how much, and of what."""
T = TypeVar("T")

_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
    *("-o", "ControlMaster=auto", "-o", "ControlPersist=60"),
)


class _Kept(NamedTuple):
    """A file as a board keeps it: by its hash, and under `name` in the folder that a hash names."""

    sha256: str
    name: str
    size: int
    folder: str

    @property
    def key(self) -> str:
        """Its name in the board's answer."""
        return f"{self.folder}/{self.name}"


class Transport(Protocol):
    """A machine that can be asked. `name` is what the user called it."""

    @property
    def name(self) -> str: ...

    def run(
        self, arguments: Sequence[str], *, stdin: bytes = b"", progress: Optional[Progress] = None
    ) -> Tuple[int, Dict[str, Any]]:
        """Runs the agent there and returns its exit code and result.

        Raises:
            DeadweightError: what the agent raised, of the same kind.
            TargetError: the machine cannot be reached, or the connection broke.
        """
        ...

    def put(self, paths: Sequence[Path], *, progress: Optional[Progress] = None) -> List[str]:
        """Makes files known there and returns their paths there, in order.

        The weights that an ONNX file keeps in files beside it go along, into the same folder.
        """
        ...

    def get(self, there: str, here: Path) -> None:
        """Brings a file here, whole or not at all."""
        ...


class Local:
    """This machine: the same agent in a process of its own, and no copies."""

    name = "local"

    def run(
        self, arguments: Sequence[str], *, stdin: bytes = b"", progress: Optional[Progress] = None
    ) -> Tuple[int, Dict[str, Any]]:
        command = [sys.executable, "-m", "deadweight.targets.agent", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        code, out, heard = spoken(command, [stdin], progress, environment)
        return code, answer(out, heard, self.name)

    def put(self, paths: Sequence[Path], *, progress: Optional[Progress] = None) -> List[str]:
        for path in paths:
            if not path.is_file():
                raise ArtifactError(f"{path} does not exist.", "Check the path.")
        return [str(path.resolve()) for path in paths]

    def get(self, there: str, here: Path) -> None:
        with writing(here) as beside:
            shutil.copyfile(there, str(beside))


class Ssh:
    """A board by its name in ssh, as in `user@board`. `config` replaces the user's own ssh_config."""

    def __init__(self, host: str, control: Path, config: Optional[Path] = None) -> None:
        self.name = host
        if not host or host.startswith("-") or any(character.isspace() for character in host):
            raise TargetError(f"'{host}' is no name of a board.", "Give it as ssh takes it: USER@HOST.")
        file = ["-F", str(config)] if config else []
        self._ssh = ["ssh", *file, *_OPTIONS, "-o", f"ControlPath={control}/%C", "--", host]
        self._start = self._greet()

    def run(
        self, arguments: Sequence[str], *, stdin: bytes = b"", progress: Optional[Progress] = None
    ) -> Tuple[int, Dict[str, Any]]:
        code, out, heard = spoken([*self._ssh, self._asking(arguments)], [stdin], progress)
        if code == 255:
            raise connection_error(self.name, heard, f"running {arguments[0]}")
        return code, answer(out, heard, self.name)

    def put(self, paths: Sequence[Path], *, progress: Optional[Progress] = None) -> List[str]:
        kept = [_kept(path) for path in paths]
        files = {each: path for together in kept for each, path in together.items()}
        wanted = list(files)
        found = self._held(wanted)
        sizes = {each.sha256: each.size for each in wanted if each.key not in found["paths"]}
        missing = {each.sha256: path for each, path in files.items() if each.sha256 in sizes}
        here = {sha256: int(found["bytes"][sha256]) for sha256 in missing}
        needed = sum(sizes[sha256] - here[sha256] for sha256 in missing)
        if needed > found["free_bytes"]:
            raise TargetError(
                f"{self.name} has {found['free_bytes'] / 1e6:.0f} MB left for {needed / 1e6:.0f} MB.",
                "Free some space on the board: rm -r ~/.cache/deadweight/files holds old copies.",
            )
        if missing:
            command = [*self._ssh, self._asking(["receive", "--sizes", json.dumps(sizes)])]
            sent = _stream(missing, here, needed, progress)
            code, out, heard = spoken(command, sent, None)
            if code == 255:
                raise connection_error(self.name, heard, "copying files")
            answer(out, heard, self.name)
        paths_there = self._held(wanted)["paths"] if missing else found["paths"]
        return [str(paths_there[next(iter(together)).key]) for together in kept]

    def get(self, there: str, here: Path) -> None:
        part = here.with_name(f".{here.name}.part")
        here.parent.mkdir(parents=True, exist_ok=True)
        offset = part.stat().st_size if part.exists() else 0
        asked = self._asking(["send", there, "--offset", str(offset)])
        with subprocess.Popen(
            [*self._ssh, asked], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            # A shell's greeting may come before the answer, and the file comes right behind it.
            line = next((line for line in process.stdout if line.startswith(b'{"agent"')), b"")
            with part.open("ab") as file:
                shutil.copyfileobj(process.stdout, file, 1 << 18)
            heard = process.stderr.read().decode("utf-8", "replace")
        if process.returncode == 255:
            raise connection_error(self.name, heard, "fetching a file")
        told = answer(line, heard, self.name)
        if sha256_of(part) != told["sha256"]:
            part.unlink()
            raise ArtifactError(
                f"{there} changed while it was fetched from {self.name}.", "Run the same command again."
            )
        part.replace(here)

    def close(self) -> None:
        """Ends the connection that is kept open."""
        host = self._ssh[-1]
        command = [*self._ssh[:-2], "-O", "exit", "--", host]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=10, check=False)

    def _greet(self) -> List[str]:
        """How the agent is started there, once it lies there."""
        sha256 = agent_sha256()
        code, out, heard = spoken([*self._ssh, HELLO.replace("SHA256", sha256)], [], None)
        told = dict(line.split("=", 1) for line in out.decode("utf-8", "replace").splitlines() if "=" in line)
        if code == 255 or "deadweight_python" not in told:
            raise connection_error(self.name, heard, "connecting", reached=code != 255)
        if not told["deadweight_python"]:
            raise TargetError(
                f"{self.name} has no Python 3.8 or newer ({told.get('deadweight_found') or 'none at all'}).",
                "Install one beside its own: sudo apt install python3.8 (JetPack 4 comes with 3.6).",
            )
        if told.get("deadweight_agent") != "here":
            code, out, heard = spoken([*self._ssh, keep_command(sha256)], [agent_bytes()], None)
            if code:
                raise connection_error(self.name, heard, "sending the agent", reached=code != 255)
        return [told["deadweight_python"], f"{told['deadweight_home']}/agent-{sha256}.pyz"]

    def _asking(self, arguments: Sequence[str]) -> str:
        return " ".join(map(shlex.quote, [*self._start, *arguments]))

    def _held(self, wanted: Sequence[_Kept]) -> Dict[str, Any]:
        return self.run(["held"], stdin=json.dumps(wanted).encode())[1]


@contextlib.contextmanager
def connected(host: str, *, config: Optional[Path] = None) -> Iterator[Transport]:
    """A board by its ssh name, or this machine for `local`, for as long as the block lasts.

    The environment's DEADWEIGHT_SSH_CONFIG names another ssh_config.

    Raises:
        TargetError: it cannot be reached, with the reason.
    """
    if host == "local":
        yield Local()
        return
    named = os.environ.get("DEADWEIGHT_SSH_CONFIG")
    # In /tmp, since a socket's path may have 108 characters only; the directory is the user's alone.
    with tempfile.TemporaryDirectory(prefix="dw-", dir="/tmp") as control:
        board = Ssh(host, Path(control), config or (Path(named) if named else None))
        try:
            yield board
        finally:
            board.close()


def on_each(hosts: Sequence[str], act: Callable[[Transport], T]) -> Dict[str, Any]:
    """Does the same on several boards at once; by host, what came of it or the error."""

    def one(host: str) -> Any:
        try:
            with connected(host) as board:
                return act(board)
        except DeadweightError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(len(hosts), 1)) as pool:
        return dict(zip(hosts, pool.map(one, hosts)))


def _stream(
    missing: Mapping[str, Path], here: Mapping[str, int], needed: int, progress: Optional[Progress]
) -> Iterator[bytes]:
    """The tar stream that `received_files.receive` takes: what is missing of each file."""
    sent = 0
    for sha256, path in missing.items():
        info = tarfile.TarInfo(f"{sha256}@{here[sha256]}")
        info.size = path.stat().st_size - here[sha256]
        yield info.tobuf(tarfile.GNU_FORMAT)
        for block in pieces(path, here[sha256]):
            yield block
            sent += len(block)
            if progress is not None:
                progress(sent, needed, "copy")
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _kept(path: Path) -> Dict[_Kept, Path]:
    """How the board is to keep a file, and after it those that hold its weights if it is a model.

    Raises:
        ArtifactError: a file is not there.
        ModelError: weights are not there, or lie where no folder of the board's could have them.
    """
    sha256, size = _hash(path), path.stat().st_size
    names = weight_names(path) if path.suffix == ".onnx" else ()
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"{path} keeps weights in {name}, which is not in its folder and cannot be sent with it.",
                "Export the model again, with its weights inside or beside it.",
            )
        if not (path.parent / name).is_file():
            raise ModelError(
                f"{path} keeps weights in {path.parent / name}, which is missing.",
                "Copy that file there as well, or export the model again.",
            )
    if not names:
        return {_Kept(sha256, path.name, size, sha256): path}
    files = {name: path.parent / name for name in names}
    hashes = {path.name: sha256, **{name: _hash(file) for name, file in files.items()}}
    # The same graph may lie beside other weights (a network that was trained again): both name the folder.
    folder = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return {
        _Kept(hashes[name], name, file.stat().st_size, folder): file
        for name, file in {path.name: path, **files}.items()
    }


def _hash(path: Path) -> str:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist.", "Check the path.")
    return sha256_of(path)
