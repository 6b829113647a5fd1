"""Text from files is shown in every way out, and obeyed in none."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table
from support.onnx_files import numbers

from deadweight.targets.gate.baseline import Baseline
from deadweight.targets.gate.check import Check, Gated
from deadweight.targets.gate.report import markdown, workflow_commands, write_junit
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.visible import markdown_text, one_line, visible
from deadweight.terminal.printer import Printer

ESCAPE, BELL, RIGHT_TO_LEFT = "\x1b", "\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"
HOSTILE = f"{ESCAPE}]0;owned{BELL}{ESCAPE}[31mx{RIGHT_TO_LEFT}\n::error file=a::boom\n##[group]y [red]<b>|`z`"


def printed(*parts: object) -> str:
    printer = Printer()
    printer.file = io.StringIO()
    for part in parts:
        printer.print(part, soft_wrap=isinstance(part, str))
    return printer.file.getvalue()


def obeyed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.lstrip().startswith(("::", "##["))]


def test_control_characters_and_marks_of_direction_become_escapes() -> None:
    assert visible(f"a{ESCAPE}b\tc\nd{RIGHT_TO_LEFT}") == "a\\x1bb\tc\nd\\u202e"
    assert one_line("a\nb") == "a\\nb"
    assert visible("\udc80\x00\r\x85") == "\\udc80\\x00\\r\\x85"


@pytest.mark.parametrize("line", ["::error::x", "  ::set-output name=a::b", "##[error]x", "##vso[task.x]y"])
def test_a_line_that_a_ci_obeys_begins_with_a_backslash(line: str) -> None:
    assert obeyed(visible(f"first\n{line}")) == []
    assert line.strip() in visible(line)


def test_ordinary_text_is_unchanged() -> None:
    text = "Größe 3 x 4: conv1::relu, 5 % — [1, 2] # heading"
    assert visible(text) == one_line(text) == text


def test_the_terminal_shows_hostile_names_as_text_also_in_tables() -> None:
    table = Table("name")
    table.add_row(HOSTILE)
    text = printed(HOSTILE, table)
    assert not {ESCAPE, BELL, RIGHT_TO_LEFT} & set(text)
    assert obeyed(text) == []
    assert text.count("[red]<b>") == 2


def test_paths_with_brackets_print_as_they_are() -> None:
    assert printed("runs/[old]/a[1].onnx") == "runs/[old]/a[1].onnx\n"


def test_every_report_of_the_gate_shows_hostile_names_as_text(tmp_path: Path) -> None:
    check = Check("slowdown", "fail", 0.02, 0.05, 0.04, 0.06, HOSTILE)
    gated = Gated((check,), HOSTILE, None, {}, None, (HOSTILE,))
    baseline = Baseline(HOSTILE, "ab" * 32, 10, Protocol(), {}, {})
    summary = markdown(gated, baseline, model=HOSTILE)
    assert obeyed(summary) == []
    assert "<b>" not in summary
    assert summary.count("\n|") == 3
    (command,) = workflow_commands(gated)
    assert "\n" not in command
    assert ESCAPE not in command + summary
    write_junit(gated, tmp_path / "gate.xml", model=HOSTILE)
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert obeyed(suite.findtext("system-out") or "") == []


def test_markdown_text_has_no_character_that_markdown_reads() -> None:
    assert markdown_text("a|b<c>*d*") == "a\\|b\\<c\\>\\*d\\*"


def hostile_file(path: Path) -> Path:
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(numbers(64, 64), HOSTILE + "w")
    node = helper.make_node("MatMul", ["x", HOSTILE + "w"], [HOSTILE + "y"], name=HOSTILE)
    inputs, outputs = (
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value(HOSTILE + "y", TensorProto.FLOAT, ["n", 64])],
    )
    graph = helper.make_graph([node], "g", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_commands_show_the_names_of_a_hostile_file_and_keep_their_exit_code_without_a_reader(
    tmp_path: Path,
) -> None:
    path = hostile_file(tmp_path / "m.onnx")
    for arguments in (["lint", path], ["memory", path], ["pack", path, "--clusters", "4"]):
        command = [sys.executable, "-m", "deadweight", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        text = done.stdout + done.stderr
        assert ESCAPE not in text
        assert obeyed(text) == []
        closed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
        assert closed.stdout is not None
        closed.stdout.close()
        _, complaint = closed.communicate()
        assert (closed.returncode, complaint) == (done.returncode, done.stderr.encode())
