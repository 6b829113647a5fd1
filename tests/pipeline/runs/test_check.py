"""`check` names file, line and cure of what is wrong in a workload or a recipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import deadweight
from deadweight.api.results import Checked
from deadweight.pipeline.runs.check import Finding

WORKLOAD = """\
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, values):
        return self.head(F.relu(self.hidden(values)))


class Mine:
    score_name = "accuracy"
    higher_is_better = True

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.label = torch.arange(400) % 4
        self.values = torch.randn(400, 16, generator=generator) + self.label[:, None]
        self.parts = {"train": (0, 200), "validation": (200, 280), "calibration": (0, 64), "test": (280, 400)}

    def build_model(self):
        return Net()

    def example_inputs(self):
        return {"values": self.values[:2]}

    def batches(self, split, *, seed=0):
        order = torch.arange(*self.parts[split])
        if split == "train":
            seeded = torch.Generator().manual_seed(seed)
            order = order[torch.randperm(len(order), generator=seeded)]
        for index in order.split(32):
            yield {"values": self.values[index], "label": self.label[index]}

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch["label"])

    def optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=1e-3)

    def score(self, predict, batches):
        right = []
        for batch in batches:
            found = predict({"values": batch["values"].numpy()})["output"]
            right += (found.argmax(1) == batch["label"].numpy()).tolist()
        return float(sum(right) / len(right))

    def fingerprint(self):
        return "mine 1"


def own(group, context):
    return torch.rand(group.size)
"""
RECIPE = """\
workload = "mine.py:Mine"

[budgets]
parameters_removed = 0.4

[[stages]]
stage = "train"
epochs = 2

[[stages]]
stage = "statistics"

[[stages]]
stage = "prune"
ratio = 0.5
criterion = "mine.own"

[[stages]]
stage = "finetune"
epochs = 1

[[stages]]
stage = "export"

[[stages]]
stage = "quantize"

[[stages]]
stage = "profile"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(WORKLOAD)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


def line(text: str, part: str) -> int:
    return next(at for at, one in enumerate(text.splitlines(), start=1) if part in one)


def mistakes(found: Checked) -> list[Finding]:
    return [one for one in found.findings if one.kind == "mistake"]


def test_a_recipe_without_a_mistake_is_tried_whole(project: Path) -> None:
    found = deadweight.check(str(project / "recipe.toml"))
    assert not mistakes(found), mistakes(found)
    assert found.exit_code == 0
    by_step = {one.step: one.what for one in found.findings}
    assert "64 units in 1 groups can be pruned" in by_step["trace"]
    assert "hidden 64 -> 32" in by_step["prune"]
    assert "int8" in by_step["quantize"]
    assert by_step["not tried"].startswith("profile")
    assert not (project / "runs").exists()


def test_mistakes_in_several_stages_and_settings_are_all_named(project: Path) -> None:
    recipe = project / "recipe.toml"
    first, second = 'stage = "train"\nepochs = -1', 'stage = "prune"\nratio = 2.0\nnorms = -3'
    recipe.write_text(f'workload = "mine.py:Mine"\n[[stages]]\n{first}\n[[stages]]\n{second}\n')
    said = [one.what for one in mistakes(deadweight.check(str(recipe)))]
    assert len(said) == 2
    assert "epochs is -1" in said[0]
    assert "ratio is 2" in said[1]
    assert "norms is -3" in said[1]


def test_a_workload_alone_is_tried_with_usual_stages(project: Path) -> None:
    found = deadweight.check(f"{project / 'mine.py'}:Mine")
    assert found.exit_code == 0, mistakes(found)
    assert "hidden 64 -> 32" in {one.step: one.what for one in found.findings}["prune"]


PLANTED = {
    # by what is wrong: the file, what is replaced by what, parts of the line and of the cure that are said
    "a package that is missing": (
        "mine.py",
        "import torch\n",
        "import torch\nimport no_such_net\n",
        "import no_such_net",
        "install no_such_net",
    ),
    "a syntax error": ("mine.py", "return Net()", "return Net(", "return Net(", "Fix"),
    "a missing member": ("mine.py", "def fingerprint", "def finger", "class Mine", "Add these members"),
    "an example of one sample": (
        "mine.py",
        "self.values[:2]",
        "self.values[:1]",
        "def example_inputs",
        "batch, of 2",
    ),
    "a forward that does not fit": (
        "mine.py",
        "nn.Linear(64, 4)",
        "nn.Linear(65, 4)",
        "return self.head",
        "Fix that line",
    ),
    "outputs without a tensor": (
        "mine.py",
        "return self.head(F.relu(self.hidden(values)))",
        "return [[3]]",
        "class Net",
        "Let forward return",
    ),
    "a batch without an input": (
        "mine.py",
        'yield {"values"',
        'yield {"value"',
        "def batches",
        "Name the tensors",
    ),
    "another type in one split": (
        "mine.py",
        "self.values[index],",
        "self.values[index].double() if split == 'test' else self.values[index],",
        "def batches",
        "Prepare all splits",
    ),
    "a validation split that is shuffled": (
        "mine.py",
        'if split == "train":',
        'order = order[torch.randperm(len(order))]\n        if split == "train":',
        "def batches",
        'augment only "train"',
    ),
    "test samples that were trained on": (
        "mine.py",
        '"test": (280, 400)',
        '"test": (100, 200)',
        "def batches",
        "Divide the data",
    ),
    "an unknown split": ("mine.py", '"calibration": (0, 64), ', "", "order = torch.arange", "Fix that line"),
    "a loss for each sample": (
        "mine.py",
        'batch["label"])',
        'batch["label"], reduction="none")',
        "def loss",
        "mean",
    ),
    "a loss that is detached": (
        "mine.py",
        'batch["label"])\n',
        'batch["label"]).detach()\n',
        "def loss",
        "without detach",
    ),
    "a loss that raises": (
        "mine.py",
        'F.cross_entropy(outputs, batch["label"])',
        'F.cross_entropy(outputs, batch["labels"])',
        "F.cross_entropy",
        "Fix that line",
    ),
    "an optimizer of another network": (
        "mine.py",
        "model.parameters()",
        "Net().parameters()",
        "def optimizer",
        "Make it of the model",
    ),
    "an output of another name": ("mine.py", '["output"]', '["logits"]', "found = predict", "Fix that line"),
    "a score that is not finite": (
        "mine.py",
        "return float(sum",
        "return float('nan') * float(sum",
        "def score",
        "finite",
    ),
    "a fingerprint that changes": (
        "mine.py",
        'return "mine 1"',
        "return str(torch.rand(1))",
        "def fingerprint",
        "Hash the data",
    ),
    "a criterion that raises": (
        "mine.py",
        "torch.rand(group.size)",
        "group.no_such",
        "group.no_such",
        "Fix that line",
    ),
    "a workload that is not there": (
        "recipe.toml",
        "mine.py:Mine",
        "mine.py:Mien",
        "workload =",
        "Did you mean 'Mine'",
    ),
    "a setting that is misspelt": (
        "recipe.toml",
        "ratio = 0.5",
        "raito = 0.5",
        "raito",
        "Did you mean 'ratio'",
    ),
    "a setting of the wrong type": ("recipe.toml", "ratio = 0.5", 'ratio = "half"', "ratio", "Correct it"),
    "a stage that is not there": (
        "recipe.toml",
        'stage = "finetune"',
        'stage = "finetun"',
        "finetun",
        "Did you mean 'finetune'",
    ),
    "stages in the wrong order": (
        "recipe.toml",
        'stage = "export"\n',
        'stage = "statistics"\n',
        'stage = "quantize"',
        'Put the stage "export" before',
    ),
    "a budget out of reach": (
        "recipe.toml",
        "parameters_removed = 0.4",
        "parameters_removed = 0.9",
        "parameters_removed",
        "Remove more",
    ),
    "a checkpoint that is not there": (
        "recipe.toml",
        'stage = "train"\nepochs = 2',
        'stage = "load"\npath = "gone.pt"',
        "path",
        "Check the path",
    ),
    "text that is not TOML": ("recipe.toml", "epochs = 2", "epochs = = 2", "epochs", "Correct that line"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_mistake_is_named_with_its_line_and_its_cure(what: str, project: Path) -> None:
    name, old, new, at, cure = PLANTED[what]
    text = (project / name).read_text()
    assert old in text
    changed = text.replace(old, new, 1)
    (project / name).write_text(changed)
    started = time.monotonic()
    found = deadweight.check(str(project / "recipe.toml"))
    assert time.monotonic() - started < 20
    assert found.exit_code == 2
    (first, *_) = mistakes(found)
    head, _, rest = at.partition("\n")
    wanted = line(changed, head) if not rest else line(changed, rest) - 1
    assert Path(first.where.rpartition(":")[0]).name == name, first
    assert first.where.endswith(f":{wanted}"), (first, wanted)
    assert cure in first.cure, first


def test_loaders_that_are_drawn_differently_each_time_get_a_cure_of_their_own(project: Path) -> None:
    (project / "drawn.py").write_text(
        "import numpy as np\nimport torch\nfrom torch import nn\nimport deadweight\n"
        "class Drawn:\n    def __iter__(self):\n        for _ in range(4):\n"
        "            values = np.random.default_rng().normal(size=(20, 16)).astype('f4')\n"
        "            yield torch.from_numpy(values), torch.arange(20) % 4\n"
        "def work():\n    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))\n"
        "    fixed = [*Drawn()]\n"
        "    return deadweight.workload(net, train=Drawn(), validation=fixed, task='classification')\n"
    )
    found = mistakes(deadweight.check(f"{project / 'drawn.py'}:work"))
    assert any("fingerprint() returned two values" in one.what for one in found), found
    assert any('fingerprint="1"' in one.cure for one in found), found


def test_the_original_is_exported_only_where_the_network_differs_in_more_than_widths(project: Path) -> None:
    by_step = {one.step: one.what for one in deadweight.check(str(project / "recipe.toml")).findings}
    assert "form module" in by_step["prune"]
    assert by_step["export"].startswith("tuned: ")
