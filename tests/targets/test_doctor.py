"""What works on a machine, and the line that fixes what does not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.boards import BOARDS, put, unpack

from deadweight.targets.doctor import doctor, next_step


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_whatever_does_not_work_comes_with_its_cure() -> None:
    for check in doctor():
        assert check.found
        assert check.works or check.cure


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    assert len(doctor(tmp_path)) > 5


def test_a_processor_made_of_software_enters_no_verdict(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "model name : QEMU Virtual CPU version 2.5+\n")
    assert any(check.name == "processor" and not check.works for check in doctor(tmp_path))


@pytest.mark.parametrize(("flags", "saturates"), [("avx2", True), ("avx2 avx512_vnni", False), ("", False)])
def test_an_x86_processor_without_vnni_is_named_with_the_setting_that_helps(
    flags: str, saturates: bool, tmp_path: Path
) -> None:
    put(tmp_path, "proc/cpuinfo", f"model name : one\nflags\t\t: fpu sse2 {flags}\n")
    cures = [check.cure for check in doctor(tmp_path) if check.name == "INT8"]
    assert [("weight_bits = 7" in cure) for cure in cures] == [True] * saturates


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_asked_for_what_a_board_needs(name: str, tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor(unpack(name, tmp_path))}
    assert {"board", "tensorrt", "cuda", "power mode", "clocks", "throttling", "signers"} <= set(checks)
    assert not {"torch", "onnx"} & set(checks)
    assert checks["board"].found.count("JetPack") + checks["board"].found.count("DriveOS") == 1
    assert checks["onnxruntime"].works
    for check in checks.values():
        assert check.works or check.cure


@pytest.mark.parametrize("name", ["drive_orin_6010", "drive_thor_703"])
def test_a_drive_board_works_and_hears_nothing_of_jetpack(name: str, tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor(unpack(name, tmp_path))}
    for check in checks.values():
        assert not any(word in check.found + check.cure for word in ("JetPack", "jetpack", "nvpmodel", "L4T"))
    assert checks["board"].found.startswith(("p3710-0010, DriveOS 6.0.10.0", "p3960-0010, DriveOS 7.0.3.0"))
    needed = ("board", "tensorrt", "cuda", "power mode", "clocks", "throttling", "onnxruntime")
    assert all(checks[each].works for each in needed)
    assert checks["tensorrt"].found.endswith("and times the GPU alone; Python has no bindings")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_devices_that_a_user_may_not_open_come_with_their_groups(public: Path) -> None:
    root = unpack("orin_nx_jp6", public)
    device = put(root, "dev/nvhost-gpu", "")
    assert {check.name: check for check in doctor(root)}["gpu devices"].works
    os.chown(device, 0, 44)
    device.chmod(0o660)
    program = (
        "import os, sys; sys.path = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from deadweight.targets.doctor import doctor\n"
        "doctor(Path(sys.argv[1]))\n"  # another user may not read the libraries that it imports
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for check in doctor(Path(sys.argv[1])): print(check.name, check.works, check.cure)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), str(Path(__file__).parents[2]), *sys.path],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("gpu devices"))
    assert "False sudo usermod -aG video,render $USER" in line
    assert line.endswith("docker run --group-add 44")


def test_a_workstation_is_not_asked_for_tensorrt() -> None:
    assert "tensorrt" not in {check.name for check in doctor()}


def test_a_release_newer_than_this_program_warns_and_works(tmp_path: Path) -> None:
    board = {check.name: check for check in doctor(unpack("orin_nano_jp6_new", tmp_path))}["board"]
    assert board.works
    assert "does not know L4T 36.9.9" in board.cure


def test_a_board_that_lacks_tensorrt_is_reported_the_line(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor(unpack("orin_nano_jp6_new", tmp_path))}["tensorrt"]
    assert not found.works
    assert found.cure == "sudo apt install nvidia-jetpack"


def test_the_cuda_library_of_the_board_s_own_release_is_named(tmp_path: Path) -> None:
    root = unpack("agx_orin_jp5", tmp_path)
    (root / "usr/local/cuda/lib64/libcudart.so").unlink()
    if find_spec("pycuda") is None:
        cuda = {check.name: check for check in doctor(root)}["cuda"]
        assert cuda.cure == "sudo apt install cuda-cudart-11-4 (the version of its JetPack)"


def test_the_fastest_mode_is_offered_where_another_one_is_set(tmp_path: Path) -> None:
    mode = {check.name: check for check in doctor(unpack("orin_nano_super_jp72", tmp_path))}["power mode"]
    assert mode.found == "25W (mode 1)"
    assert mode.cure == "The fastest mode is MAXN_SUPER: sudo nvpmodel -m 2"


def test_a_throttling_board_does_not_work_until_it_is_cooled(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor(unpack("xavier_nx_jp5", tmp_path))}["throttling"]
    assert not found.works
    assert "gpu-throttle-alert" in found.found
    assert "3 of under-voltage" in found.found
    assert "power supply" in found.cure


def test_a_hot_surface_is_shown_and_no_fault(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor(unpack("orin_nx_jp6", tmp_path))}
    assert checks["temperature"].found.endswith("; its surface is hot, which slows nothing")
    assert checks["temperature"].works
    assert checks["throttling"].works


def test_the_dummy_heat_of_a_power_chip_is_no_heat(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor(unpack("tx2_jp4", tmp_path))}["temperature"]
    assert found.works
    assert found.found.startswith("40 °C")


def test_signers_are_seen_where_they_are(tmp_path: Path) -> None:
    root = unpack("orin_nx_jp6", tmp_path)
    assert "install -D" in {check.name: check for check in doctor(root)}["signers"].cure
    put(root, "etc/deadweight/allowed_signers", "release ssh-ed25519 AAAA\n")
    assert {check.name: check for check in doctor(root)}["signers"].cure == ""


def test_the_last_sentence_names_the_next_step(tmp_path: Path) -> None:
    checks = doctor(unpack("orin_nano_jp6_new", tmp_path))
    first = next(check for check in checks if not check.works)
    assert next_step(checks).endswith(f"Begin with {first.name}: {first.cure}")
    fine = tuple(replace(check, works=True) for check in checks)
    assert "--on USER@HOST builds both here in FP16 and times the engines on the GPU" in next_step(fine)
    assert "deadweight init" in next_step(
        tuple(check for check in fine if check.name not in ("board", "runtime memory"))
    )


def test_the_doctor_works_in_a_python_with_nothing_installed() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deadweight.targets.doctor import doctor\n"
        "for check in doctor(): print(check.name, check.works, check.cure)\n"
    )
    house = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, house], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "numpy False pip install numpy" in done.stdout
    assert "onnxruntime False pip install onnxruntime" in done.stdout


@pytest.mark.parametrize(
    "raised",
    [
        "RuntimeError('module compiled against ABI version 0x1000009 and not 0x2000000 of numpy')",
        "AttributeError('_ARRAY_API not found')",
        "ImportError('numpy.core.multiarray failed to import')",
    ],
)
@pytest.mark.parametrize(("numpy", "cure"), [("2.3.1", "'numpy<2'"), ("1.17.4", "--upgrade numpy")])
def test_a_library_built_for_another_numpy_is_reported_with_the_cure(
    tmp_path: Path, raised: str, numpy: str, cure: str
) -> None:
    put(tmp_path, "onnxruntime/__init__.py", f"raise {raised}\n")
    put(tmp_path, f"numpy-{numpy}.dist-info/METADATA", f"Name: numpy\nVersion: {numpy}\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from deadweight.targets.doctor import doctor\n"
        "from deadweight.targets.errors import TargetError\n"
        "from deadweight.targets.runtimes.ort import open_ort\n"
        "print([(check.works, check.cure) for check in doctor() if check.name == 'onnxruntime'])\n"
        "try: open_ort(Path('a.onnx'), threads=1)\n"
        "except TargetError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    result = (False, f"It was built for another numpy than {numpy}: pip install {cure}")
    assert repr(result) in done.stdout
    assert raised.split("(")[1].strip(")'") in done.stdout.splitlines()[1]


def test_a_library_that_is_there_but_broken_is_reported_apart(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('libgomp is missing')\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deadweight.targets.doctor import doctor\n"
        "print([check.found for check in doctor() if check.name == 'onnxruntime'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "does not import: libgomp is missing" in done.stdout
