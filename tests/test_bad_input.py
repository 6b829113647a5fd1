"""What a user can get wrong: each gives one clear message with a cure, exit code 2, and loses nothing."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import digits

from deadweight.__main__ import main

RECIPE = """
workload = "mine.py:Mine"
[[stages]]
stage = "train"
epochs = 1
[[stages]]
stage = "statistics"
[[stages]]
stage = "prune"
ratio = 0.5
"""
MINE = "from small import Digits\n\n\nclass Mine(Digits):\n    pass\n"
BRANCHING = """from small import Digits
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, pixels):
        x = self.a(pixels)
        if x.sum() > 0:
            x = x.relu()
        return self.b(x)

class Mine(Digits):
    def build_model(self):
        return Branching()
"""

Failing = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a recipe, a workload of their own, and the module it imports."""
    shutil.copy(digits.__file__, tmp_path / "small.py")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def command(project: Path, *arguments: str) -> list[str]:
    return ["deadweight", "run", str(project / "recipe.toml"), "--out", str(project / "run"), *arguments]


@pytest.fixture
def fails(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Failing:
    """Runs the recipe, sees exit code 2 and no traceback, and returns what was printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", command(project, *arguments))
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr().err
        assert caught.value.code == 2, printed
        assert "Traceback" not in printed
        assert "What to do:" in printed
        return printed

    return run


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_misspelt_key(project: Path, fails: Failing) -> None:
    replace(project / "recipe.toml", "ratio", "rato")
    printed = fails()
    assert 'recipe.toml, stages[2] "prune": there is no setting "rato".' in printed
    assert "Did you mean 'ratio'?" in printed


def test_an_unknown_target(fails: Failing) -> None:
    printed = fails("--target", "orin-nan")
    assert "There is no target named 'orin-nan'" in printed
    assert "orin-nano-8gb" in printed


def test_a_setting_of_the_wrong_type(fails: Failing) -> None:
    assert "stages[0] \"train\": epochs is 'two'; it should be a valid integer" in fails(
        "--set", "train.epochs=two"
    )


def test_a_workload_that_does_not_import(project: Path, fails: Failing) -> None:
    (project / "mine.py").write_text("import nothing_like_this\n")
    printed = fails()
    assert "mine.py was imported: ModuleNotFoundError: No module named 'nothing_like_this'" in printed
    assert f"{project / 'mine.py'}:1" in printed


def test_a_workload_that_lacks_members(project: Path, fails: Failing) -> None:
    (project / "mine.py").write_text("class Mine:\n    score_name = 'x'\n")
    assert "is not a workload: it lacks higher_is_better, build_model" in fails()


def test_an_error_in_the_users_own_code_names_their_line(project: Path, fails: Failing) -> None:
    (project / "mine.py").write_text(
        MINE.replace("pass", "def loss(self, outputs, batch):\n        return 1 / 0\n")
    )
    printed = fails()
    assert "loss() was called: ZeroDivisionError" in printed
    assert f"{project / 'mine.py'}:6" in printed


def test_a_network_that_returns_nan(project: Path, fails: Failing) -> None:
    nan = "def score(self, predict, batches):\n        next(iter(batches))\n        return float('nan')\n"
    (project / "mine.py").write_text(MINE.replace("pass", nan))
    assert "score() returned nan" in fails()
    bad = """def build_model(self):
        import torch
        model = super().build_model()
        model[4].bias.data[0] = torch.inf
        return model
"""
    (project / "mine.py").write_text(MINE.replace("pass", bad))
    assert "Training diverged: the loss is" in fails()


def test_a_loaded_network_that_returns_nan(project: Path, fails: Failing) -> None:
    weights = digits.Digits().build_model().state_dict()
    weights["4.bias"][0] = torch.nan
    torch.save(weights, project / "weights.pt")
    replace(
        project / "recipe.toml",
        'stage = "train"\nepochs = 1',
        f'stage = "load"\npath = "{project}/weights.pt"',
    )
    assert 'output "output" has NaN or infinity on the "validation" split' in fails()


def test_a_validation_split_without_samples(project: Path, fails: Failing) -> None:
    empty = (
        "def batches(self, split, *, seed=0):\n"
        "        return [] if split == 'validation' else super().batches(split)"
    )
    (project / "mine.py").write_text(MINE.replace("pass", empty))
    assert 'The split "validation" has no samples.' in fails()


def test_a_network_whose_path_depends_on_its_data(project: Path, fails: Failing) -> None:
    (project / "mine.py").write_text(BRANCHING)
    printed = fails()
    assert "takes a different path for different data" in printed
    assert f"{project / 'mine.py'}:11" in printed
    assert "torch.where" in printed
    assert (project / "run" / "stages").exists()  # the training before it is kept


def test_thresholds_that_would_remove_a_whole_layer(project: Path, fails: Failing) -> None:
    replace(project / "recipe.toml", "ratio = 0.5", "mean = 1000.0\nstd = 1000.0")
    printed = fails()
    assert "would be removed, and with them the layer" in printed
    assert "Lower the thresholds" in printed


def test_thresholds_and_a_ratio_at_once(fails: Failing) -> None:
    assert "Give one of three" in fails("--set", "prune.mean=0.1", "--set", "prune.std=0.1")


def test_a_ratio_that_removes_everything(fails: Failing) -> None:
    assert 'stages[2] "prune": ratio is 1.0; it should be less than 1' in fails("--set", "prune.ratio=1.0")


def test_an_unknown_criterion(fails: Failing) -> None:
    assert 'There is no criterion "luck"' in fails("--set", "prune.criterion=luck")


def test_a_damaged_artifact_is_named_and_what_was_finished_is_kept(project: Path, fails: Failing) -> None:
    replace(project / "recipe.toml", "ratio = 0.5", "mean = 1e6\nstd = 1e6")
    fails()
    (weights,) = (project / "run").glob("stages/train-*/original/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    printed = fails()
    assert f"{weights} is damaged" in printed
    assert f"Delete it (rm {weights})" in printed
    weights.unlink()
    assert "with them the layer" in fails()
    assert weights.exists()


def test_a_half_written_record_of_a_stage(project: Path, fails: Failing) -> None:
    replace(project / "recipe.toml", "ratio = 0.5", "mean = 1e6\nstd = 1e6")
    fails()
    (done,) = (project / "run").glob("stages/train-*/done.json")
    done.write_text(done.read_text()[:50])
    assert f"{done} is not readable as JSON" in fails()


def test_an_onnx_file_given_as_weights(project: Path, fails: Failing) -> None:
    (project / "model.onnx").write_bytes(b"any")
    load = f'stage = "load"\npath = "{project / "model.onnx"}"'
    replace(project / "recipe.toml", 'stage = "train"\nepochs = 1', load)
    printed = fails()
    assert "is an ONNX file, but pruning needs the PyTorch network" in printed
    assert "the checkpoint that it was exported from" in printed


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def test_a_checkpoint_that_is_a_pickle_with_code_is_never_opened(
    project: Path, fails: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "weights.pt").write_bytes(pickle.dumps({"model": Malicious()}))
    torch.save({"model": Malicious()}, project / "zipped.pt")
    replace(project / "recipe.toml", 'stage = "train"\nepochs = 1', 'stage = "load"\npath = "weights.pt"')
    assert "is a pickle with more than tensors" in fails()
    assert "is a pickle with more than tensors" in fails("--set", "load.path=zipped.pt")
    assert not (project / "owned").exists()


def test_a_checkpoint_of_another_network(project: Path, fails: Failing) -> None:
    torch.save({"weight": torch.zeros(3)}, project / "other.pt")
    replace(
        project / "recipe.toml", 'stage = "train"\nepochs = 1', f'stage = "load"\npath = "{project}/other.pt"'
    )
    printed = fails()
    assert "other.pt does not fit the network" in printed


def test_a_full_disk_is_said_and_the_same_command_goes_on(project: Path) -> None:
    # A disk of 100 kB, in a mount namespace of its own; outside it nothing is mounted.
    full = project / "run"
    full.mkdir()
    line = " ".join(command(project)).replace("deadweight", f"{sys.executable} -m deadweight", 1)
    script = f"mount -t tmpfs -o size=100k none {full} && exec {line}"
    wrapped = ["unshare", "--map-root-user", "--mount", "bash", "-c", script]
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    done = subprocess.run(wrapped, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "No space left on the disk" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_in_one_directory(project: Path, fails: Failing) -> None:
    from deadweight.pipeline.runs.cache import locked

    with locked(project / "run"):
        assert "Another run is active in" in fails()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[[stages]]", "[stages]", "not valid TOML"),
        (RECIPE[RECIPE.index("[[") :], "stages = 3", "The stages are not a list of tables"),
        (
            "epochs = 1",
            "epochs = -1",
            'stages[0] "train": epochs is -1; it should be greater than or equal to 0',
        ),
        (
            "epochs = 1",
            'decay = "cosin"',
            "stages[0] \"train\": decay is 'cosin'; it should be 'cosine' or 'none'",
        ),
        ("ratio = 0.5", "mean = inf", "stages.2.mean is inf"),
        ('"train"', '"absent_stages.Mine"', "No module named 'absent_stages'"),
    ],
)
def test_other_slips_of_a_recipe(project: Path, fails: Failing, old: str, new: str, says: str) -> None:
    replace(project / "recipe.toml", old, new)
    assert says in fails()


def test_a_training_batch_that_does_not_fit(project: Path, fails: Failing) -> None:
    wide = (
        "def batches(self, split, *, seed=0):\n"
        "        for batch in super().batches(split, seed=seed):\n"
        "            yield {**batch, 'pixels': batch['pixels'][:, :3]}\n"
    )
    (project / "mine.py").write_text(MINE.replace("pass", wide))
    assert "the network ran on a training batch" in fails()


def test_the_users_own_stage_lies_beside_the_recipe(project: Path) -> None:
    own = (
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine:\n"
        "    def __call__(self, work):\n        print('here')\n        return work\n"
    )
    (project / "beside.py").write_text(own)
    (project / "recipe.toml").write_text(
        RECIPE[: RECIPE.index("[[")] + '[[stages]]\nstage = "train"\nepochs = 0\n'
        '[[stages]]\nstage = "beside.Mine"\n'
    )
    line = (
        [sys.executable, "-P", "-m", *command(project)] if sys.version_info >= (3, 11) else command(project)
    )
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 3, done.stderr
    assert "here" in done.stdout
