"""The board stand-in: an arm64 Debian under user-mode emulation, with a real sshd in it.

Linux 6.7 and newer give every user namespace its own binfmt_misc, so the emulator is registered for the
stand-in alone and nothing of the host changes. The root file system is only unpacked, never configured, on
the host; wheels are put into it by the host's pip. It shows that the agent, ssh, tar and signatures work on
arm64. It says nothing of CUDA, TensorRT or time: what it measures is emulated.

    python tests/support/arm64_board.py PLACE COMMAND...     runs a command in it (needs root)
    python tests/support/arm64_board.py host COMMAND...      runs one here, where arm64 programs run too then
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import ssh_board

EMULATOR = Path("/usr/bin/qemu-aarch64-static")
PACKAGES = (
    "python3-minimal,libpython3.11-stdlib,libstdc++6,bash,dash,coreutils,tar,sed,grep,findutils,"
    "openssh-server,openssh-client,libc-bin"
)
WHEELS = ("numpy==2.4.6", "onnxruntime==1.32.0")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
CACHE = Path("~/.cache/deadweight-standin").expanduser()

_NEW_NAMESPACE, _NEW_USER, _NEW_PID = 0x20000, 0x10000000, 0x20000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_DIE_WITH_PARENT = 1
_MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def missing() -> str:
    """What this machine lacks for the stand-in; empty if nothing."""
    tools = [tool for tool in ("mmdebstrap", "ssh") if shutil.which(tool) is None]
    if not EMULATOR.exists():
        tools.append("qemu-user-static")
    if tools:
        return f"not installed: {', '.join(tools)} (make test-board installs them)"
    if os.getuid() != 0:
        return "only root can give a namespace all user ids"
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return "" if release >= (6, 7) else "the kernel is older than 6.7: binfmt_misc is not private there"


def root_fs() -> Path:
    """The unpacked system, made once (some 40 seconds) and kept by what it is made of."""
    made_of = hashlib.sha256("|".join((PACKAGES, *WHEELS, *PLATFORMS, "compiled")).encode()).hexdigest()[:12]
    place = CACHE / made_of
    if place.exists():
        return place
    part = place.with_name(f".{made_of}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    options = ("--mode=root", "--variant=extract", "--arch=arm64", f"--include={PACKAGES}")
    _run("mmdebstrap", "--quiet", *options, "bookworm", str(part))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    chosen = [word for platform in PLATFORMS for word in ("--platform", platform)]
    place_of_wheels = ("--only-binary=:all:", "--python-version", "3.11", "--target", str(part / "opt/app"))
    _run(*pip, *place_of_wheels, *chosen, *WHEELS)
    if sys.version_info[:2] == (3, 11):  # the stand-in's own: it need not compile, which takes it seconds
        trees = [str(part / tree) for tree in ("usr/lib/python3.11", "opt/app")]
        quiet = ("-q", "-s", str(part), "--invalidation-mode", "unchecked-hash")
        subprocess.run([sys.executable, "-m", "compileall", *quiet, *trees], check=False, capture_output=True)
    _furnish(part)
    part.rename(place)
    return place


def _furnish(root: Path) -> None:
    """The few files that Debian's own set-up would have written."""
    etc = root / "etc"
    (etc / "passwd").write_text(
        "root:x:0:0::/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n"
        "board:x:1000:1000::/home/board:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
    )
    (etc / "group").write_text("root:x:0:\nboard:x:1000:\nnogroup:x:65534:\n")
    (etc / "shadow").write_text("root:*:1::::::\nsshd:*:1::::::\nboard:*:1::::::\n")
    for folder, mode, owner in (("run/sshd", 0o755, 0), ("home/board", 0o755, 1000), ("tmp", 0o1777, 0)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(mode)
        os.chown(root / folder, owner, owner)


def image_base(place: Path) -> Path:
    """A base image's files as a tar, in place of NVIDIA's: Python with venv, and the wheels of the board's
    install, so that its build needs no network."""
    root = place / "base"
    packages = f"{PACKAGES},python3.11-venv,python3-pip-whl,python3-setuptools-whl,passwd"
    options = ("--mode=root", "--variant=extract", "--arch=arm64", f"--include={packages}")
    _run("mmdebstrap", "--quiet", *options, "bookworm", str(root))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    chosen = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = (WHEELS[0], "setuptools>=77", "wheel")
    where = ("--only-binary=:all:", "--python-version", "3.11", "--dest", str(root / "wheels"))
    _run(*pip, *where, *chosen, *wanted)
    _furnish(root)
    (root / "etc/gshadow").touch()
    _run("tar", "-C", str(root), "-cf", str(place / "base.tar"), ".")
    shutil.rmtree(root)
    return place / "base.tar"


def make_board(place: Path) -> ssh_board.Board:
    """A stand-in of a test's own, reached as `board`: the kept system under an overlay of the test's."""
    place.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        ssh_board.new_key(place / name)
    ssh_board.trust_host(place)
    (place / "authorized").write_text((place / "user.pub").read_text())
    for folder in ("upper", "work", "merged"):
        (place / folder).mkdir()
    shutil.copytree(root_fs() / "home", place / "upper/home", symlinks=True)
    os.chown(place / "upper/home/board", 1000, 1000)
    (place / "upper/etc/ssh").mkdir(parents=True)
    for name in ("host", "authorized"):
        shutil.copy(place / name, place / "upper/etc/ssh" / name)
    server = {
        "HostKey": "/etc/ssh/host",
        "AuthorizedKeysFile": "/etc/ssh/authorized",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "PidFile": "none",
        "SetEnv": "PYTHONPATH=/opt/app PYTHONDONTWRITEBYTECODE=1 PATH=/usr/bin:/bin",
    }
    (place / "upper/etc/ssh/sshd_config").write_text("".join(f"{k} {v}\n" for k, v in server.items()))
    proxy = f"{sys.executable} {Path(__file__).resolve()} {place} /usr/sbin/sshd -i -f /etc/ssh/sshd_config"
    config = {
        "Host": "board",
        "User": "board",
        "IdentityFile": place / "user",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": place / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": "60",
        "ProxyCommand": f"{sys.executable} {Path(ssh_board.__file__).resolve()} {place} {proxy}",
    }
    (place / "ssh_config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    board = ssh_board.Board(place / "ssh_config", place / "upper/home/board", place)
    board.reconnect()
    return board


def enter(place: Path | None, command: list[str]) -> int:
    """Runs a command in the stand-in at `place` and returns its exit code.

    Without a place it runs in the host's own file system, where arm64 programs run as well then: what a
    builder of images needs.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int, what: str) -> None:
        if result:
            sys.exit(f"stand-in: {what}: {os.strerror(ctypes.get_errno())}")

    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        done(libc.unshare(_NEW_USER), "a user namespace")
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os.setgid(0)
        os.setuid(0)
        done(libc.unshare(_NEW_NAMESPACE | _NEW_PID), "namespaces")
        # This process stays outside the new pid namespace; its child is the first inside and reaps.
        os._exit(_waited(os.fork() or _first(place, command, libc, done)))
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text("0 0 65536")
    os.write(go[1], b"x")
    return _waited(child)


def _first(place: Path | None, command: list[str], libc: ctypes.CDLL, done: object) -> int:
    """The first process inside: lays out the system, and waits for the command. It never is the command:
    a guest that crashes as the first process hangs, because signals to it are ignored."""
    assert callable(done)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    root = Path("/") if place is None else place / "merged"
    done(libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None), "private mounts")
    if place is not None:
        layers = f"lowerdir={root_fs()},upperdir={place}/upper,workdir={place}/work"
        done(libc.mount(b"overlay", bytes(root), b"overlay", 0, layers.encode()), "the overlay")
        done(libc.mount(b"/dev", bytes(root / "dev"), None, _BIND | _RECURSIVE, None), "/dev")
    done(libc.mount(b"proc", bytes(root / "proc"), b"proc", 0, None), "/proc")
    handlers = root / "proc/sys/fs/binfmt_misc"
    done(libc.mount(b"binfmt_misc", bytes(handlers), b"binfmt_misc", 0, None), "binfmt_misc")
    line = b":qemu-aarch64:M::" + _MAGIC + b":" + _MASK + b":" + bytes(EMULATOR) + b":FP"
    with (handlers / "register").open("wb", buffering=0) as register:
        register.write(line)
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    if place is not None:
        os.chroot(root)
        os.chdir("/")
        environment = {"PATH": environment["PATH"], "PYTHONPATH": "/opt/app"}
    child = os.fork()
    if child == 0:
        os.execvpe(command[0], command, environment)
    os._exit(_waited(child))


def _waited(child: int) -> int:
    """The exit code of a child; orphans that end meanwhile are reaped."""
    while True:
        found, status = os.wait()
        if found == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-800:]}")


if __name__ == "__main__":
    sys.exit(enter(None if sys.argv[1] == "host" else Path(sys.argv[1]), sys.argv[2:]))
