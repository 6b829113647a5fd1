"""The transport to a board over ssh, or to this machine: run the agent, send files, fetch files.

It uses the system's ssh, so that ssh_config, jump hosts, agents and known_hosts work. One connection stays
open (ControlMaster), since a new one takes seconds. The first call sends the agent, stored under its hash, so
both sides have the same version. Files are stored on the board by their hash: a received file is not sent
again, and an interrupted copy resumes.
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
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional, Sequence, TypeVar, Union

from ..artifact import sha256_of, writing
from ..engines.plugins import given_plugins
from ..engines.record import record_path
from ..errors import ArtifactError, DeadweightError, ModelError, RefusedError, TargetError
from ..onnx_file import weight_names
from ..progress import Progress, silent
from ..runtimes.runtime import is_engine
from .exchange import (
    HELLO,
    agent_bytes,
    agent_sha256,
    answer,
    connection_error,
    keep_command,
    reading,
    spoken,
    typed,
)
from .received_files import pieces

T = TypeVar("T")

_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
    *("-o", "ControlMaster=auto", "-o", "ControlPersist=60"),
)


class _Upload(NamedTuple):
    """A file as stored on a board: by its hash, and under `name` in the folder named by a hash."""

    sha256: str
    name: str
    size: int
    folder: str

    @property
    def key(self) -> str:
        """Its name in the board's answer."""
        return f"{self.folder}/{self.name}"


class Local:
    """This machine, with the methods of `Ssh`: the agent in a separate process, without copies."""

    name = "local"

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress

    def run(self, arguments: Sequence[str], *, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "deadweight.targets.agent", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        code, out, heard = spoken(command, [stdin], self.progress, environment)
        return code, answer(out, heard, self.name)

    def put(self, paths: Sequence[Path]) -> list[str]:
        for path in paths:
            if not path.exists():
                raise ArtifactError(f"{path} does not exist.", "Check the path.")
        return [str(path.resolve()) for path in paths]

    def get(self, there: str, here: Path) -> None:
        with writing(here) as beside:
            shutil.copyfile(there, str(beside))


class Ssh:
    """A board by its name in ssh, as in `user@board`. `config` replaces the user's ssh_config."""

    def __init__(self, host: str, control: Path, config: Optional[Path], progress: Progress) -> None:
        self.name, self.progress = host, progress
        if not host or host.startswith("-") or any(character.isspace() for character in host):
            raise TargetError(f"'{host}' is not a name for ssh.", "Give the board as USER@HOST.")
        file = ["-F", str(config)] if config else []
        self._ssh = ["ssh", *file, *_OPTIONS, "-o", f"ControlPath={control}/%C", "--", host]
        self._start = self._greet()

    def run(self, arguments: Sequence[str], *, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
        """Runs the agent there and returns its exit code and result.

        Raises:
            DeadweightError: the agent's error, of the same class.
            TargetError: the machine cannot be reached, or the connection broke.
        """
        code, out, heard = spoken([*self._ssh, self._command(arguments)], [stdin], self.progress)
        if code == 255:
            raise connection_error(self.name, heard, f"running {arguments[0]}")
        return code, answer(out, heard, self.name)

    def put(self, paths: Sequence[Path]) -> list[str]:
        """Makes files available there and returns their paths there, in order.

        External weights of an ONNX file are sent too, into the same folder. A folder arrives with its files.
        """
        uploads = [_uploads(path) for path in paths]
        files = {each: path for together in uploads for each, path in together.items()}
        wanted = list(files)
        here, there, free_bytes = self._stored(wanted)
        sizes = {each.sha256: each.size for each in wanted if each.key not in there}
        missing = {each.sha256: path for each, path in files.items() if each.sha256 in sizes}
        needed = sum(sizes[sha256] - here[sha256] for sha256 in missing)
        if needed > free_bytes:
            raise TargetError(
                f"{self.name} has {free_bytes / 1e6:.0f} MB left for {needed / 1e6:.0f} MB.",
                "Free some space on the board: rm -r ~/.cache/deadweight/files removes old copies.",
            )
        if missing:
            command = [*self._ssh, self._command(["receive", "--sizes", json.dumps(sizes)])]
            code, out, heard = spoken(command, _stream(missing, here, needed, self.progress))
            if code == 255:
                raise connection_error(self.name, heard, "copying files")
            answer(out, heard, self.name)
            there = self._stored(wanted)[1]
        placed = []
        for path, together in zip(paths, uploads):
            first = next(iter(together))
            with reading(self.name):
                place = there[first.key]
            placed.append(place[: -len(first.name) - 1] if path.is_dir() else place)
        return placed

    def get(self, there: str, here: Path) -> None:
        """Fetches a file, whole or not at all."""
        part = here.with_name(f".{here.name}.part")
        here.parent.mkdir(parents=True, exist_ok=True)
        command = self._command(["send", there, "--offset", str(part.stat().st_size if part.exists() else 0)])
        with subprocess.Popen(
            [*self._ssh, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            # A shell's greeting may precede the answer, and the file follows it.
            line = next((line for line in process.stdout if line.startswith(b'{"agent"')), b"")
            with part.open("ab") as file:
                shutil.copyfileobj(process.stdout, file, 1 << 18)
            heard = process.stderr.read().decode("utf-8", "replace")
        if process.returncode == 255:
            raise connection_error(self.name, heard, "fetching a file")
        if answer(line, heard, self.name).get("sha256") != sha256_of(part):
            part.unlink()
            raise ArtifactError(
                f"{there} changed while it was fetched from {self.name}.", "Run the same command again."
            )
        part.replace(here)

    def close(self) -> None:
        """Closes the open connection."""
        command = [*self._ssh[:-2], "-O", "exit", *self._ssh[-2:]]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=10, check=False)

    def _greet(self) -> list[str]:
        """The command that starts the agent there, which is sent if it is missing."""
        sha256 = agent_sha256()
        code, out, heard = spoken([*self._ssh, HELLO.replace("SHA256", sha256)], [])
        lines = out.decode("utf-8", "replace").splitlines()
        facts = dict(line.split("=", 1) for line in lines if "=" in line)
        if code == 255 or not {"deadweight_python", "deadweight_home"} <= set(facts):
            raise connection_error(self.name, heard, "connecting", reached=code != 255)
        if not facts["deadweight_python"]:
            raise TargetError(
                f"{self.name} has no Python 3.8 or newer ({facts.get('deadweight_found') or 'none at all'}).",
                "Install one beside it: sudo apt install python3.8 (JetPack 4 comes with 3.6).",
            )
        if facts.get("deadweight_agent") != "here":
            code, out, heard = spoken([*self._ssh, keep_command(sha256)], [agent_bytes()])
            if code:
                raise connection_error(self.name, heard, "sending the agent", reached=code != 255)
        return [facts["deadweight_python"], f"{facts['deadweight_home']}/agent-{sha256}.pyz"]

    def _command(self, arguments: Sequence[str]) -> str:
        plugins = [word for path in given_plugins() for word in ("--plugin", path)]
        return " ".join(map(shlex.quote, [*self._start, *plugins, *arguments]))

    def _stored(self, wanted: Sequence[_Upload]) -> tuple[dict[str, int], Mapping[str, str], int]:
        """What is there: bytes by hash, and the paths of whole files; and its free space."""
        held = self.run(["held"], stdin=json.dumps(wanted).encode())[1]
        with reading(self.name):
            here = {each.sha256: max(0, int(held["bytes"][each.sha256])) for each in wanted}
            return here, typed(Mapping[str, str], held["paths"], self.name), int(held["free_bytes"])


Transport = Union[Local, Ssh]
"""A machine that runs the agent."""


@contextlib.contextmanager
def connected(
    host: str, progress: Progress = silent, *, config: Optional[Path] = None
) -> Iterator[Transport]:
    """A board by its ssh name, or this machine for `local`, for the duration of the block.

    What is sent and run there reports its progress. The environment variable DEADWEIGHT_SSH_CONFIG names
    another ssh_config.
    """
    progress(0, 1, f"connecting to {host}")
    if host == "local":
        yield Local(progress)
        return
    named = os.environ.get("DEADWEIGHT_SSH_CONFIG")
    # In /tmp, since a socket's path has at most 108 characters; only the user can read the directory.
    with tempfile.TemporaryDirectory(prefix="dw-", dir="/tmp") as control:
        board = Ssh(host, Path(control), config or (Path(named) if named else None), progress)
        try:
            yield board
        finally:
            board.close()


def on_each(hosts: Sequence[str], act: Callable[[Transport], T]) -> dict[str, Any]:
    """Calls `act` on several boards at once; returns the result or the error by host."""

    def one(host: str) -> Any:
        try:
            with connected(host) as board:
                return act(board)
        except DeadweightError as error:
            return error

    agent_bytes()  # made once, ahead: Python 3.11's parser fails in two threads at once
    with ThreadPoolExecutor(max_workers=max(len(hosts), 1)) as pool:
        return dict(zip(hosts, pool.map(one, hosts)))


def _stream(
    missing: Mapping[str, Path], here: Mapping[str, int], needed: int, progress: Progress
) -> Iterator[bytes]:
    """The tar stream for `received_files.receive`: the missing part of each file."""
    sent = 0
    for sha256, path in missing.items():
        info = tarfile.TarInfo(f"{sha256}@{here[sha256]}")
        info.size = path.stat().st_size - here[sha256]
        yield info.tobuf(tarfile.GNU_FORMAT)
        for block in pieces(path, here[sha256]):
            yield block
            sent += len(block)
            progress(sent, needed, "copy")
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _uploads(path: Path) -> dict[_Upload, Path]:
    """A file to send, followed by a model's external weights or an engine's record; or a folder's files."""
    if path.is_dir():
        return _together(_files_in(path))
    sha256 = _hash(path)
    names: Sequence[str] = weight_names(path) if path.suffix == ".onnx" else ()
    if is_engine(path.name) and record_path(path).is_file():  # it has the inputs, which trtexec does not tell
        names = (record_path(path).name,)
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"{path} has weights in {name}, which is outside its folder and cannot be sent with it.",
                "Export the model again, with its weights in the file or beside it.",
            )
        if not (path.parent / name).is_file():
            raise ModelError(
                f"{path} has weights in {path.parent / name}, which is missing.",
                "Copy that file there too, or export the model again.",
            )
    if not names:
        return {_Upload(sha256, path.name, path.stat().st_size, sha256): path}
    return _together({path.name: path, **{name: path.parent / name for name in names}})


def _files_in(folder: Path) -> dict[str, Path]:
    """By their names below the folder; a link or a device is refused."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if not files:
        raise ArtifactError(f"{folder} has no files.", "Make a bundle: deadweight bundle RUN.")
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise RefusedError(f"{path} is not a regular file.", "Do not use this folder.")
    return {path.relative_to(folder).as_posix(): path for path in files}


def _together(files: Mapping[str, Path]) -> dict[_Upload, Path]:
    """Files that must be in one folder, whose hash is of all: the same graph may have other weights."""
    hashes = {name: _hash(file) for name, file in files.items()}
    folder = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return {_Upload(hashes[name], name, file.stat().st_size, folder): file for name, file in files.items()}


def _hash(path: Path) -> str:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist.", "Check the path.")
    return sha256_of(path)
