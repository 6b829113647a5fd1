"""Ray clusters on this machine: each raylet is a node; nothing of their traffic leaves it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Nodes:
    """A cluster's address, and its nodes beside the head."""

    address: str
    cluster: Any
    others: list[Any]

    def kill(self, name: str = "") -> None:
        """Kills a node by its id, or any, as a power cut would: the raylet and its workers."""
        node = next(one for one in self.others if name in ("", one.node_id))
        self.others.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def alive(self) -> int:
        """How many nodes answer, the head too."""
        return sum(bool(one["Alive"]) for one in self.cluster.global_state.node_table())


@contextlib.contextmanager
def cluster(*nodes: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """A head, and nodes with these resources, e.g. {"num_cpus": 1, "resources": {"orin": 1}}."""
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"object_store_memory": 80 << 20}
    before = dict(os.environ)
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
            **(environment or {}),
        }
    )
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **common},
    )
    try:
        others = [made.add_node(wait=False, **common, **one) for one in nodes]
        made.wait_for_nodes()
        yield Nodes(str(made.address), made, others)
    finally:
        made.shutdown()  # type: ignore[no-untyped-call]
        os.environ.clear()
        os.environ.update(before)


def other_python() -> str:
    """A Python that can have Ray and is not this one; "" if there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in (12, 13, 10):
        name = f"python3.{minor}"
        for found in (*versions.glob(f"3.{minor}.*/bin/{name}"), shutil.which(name)):
            command = [str(found), "-c", "import ensurepip"]
            if found and sys.version_info[1] != minor and not subprocess.run(command, check=False).returncode:
                return str(found)
    return ""


@contextlib.contextmanager
def head_of(ray: Path, place: Path) -> Iterator[str]:
    """The address of a cluster that another environment's `ray` starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(ray), "start", "--head", "--block", "--port", str(port), "--num-cpus", "1"]
    command += ["--include-dashboard", "false", "--node-ip-address", "127.0.0.1", "--temp-dir", str(place)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with (place / "log").open("w") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
