"""A wrapped network is pruned as the one within; what cannot be unwrapped is refused with the cure."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import nets
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from deadweight import apply, choose, load_pruned, plan_of, save_pruned, trace, verify
from deadweight.export.opened import unwrapped
from deadweight.targets.errors import ModelError


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        DistributedDataParallel,
        AveragedModel,
        compiled,
        lambda model: compiled(nn.DataParallel(model)),
    ],
    ids=["data parallel", "distributed", "average", "compiled", "both"],
)
def test_a_wrapped_network_is_pruned_as_the_one_within(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nets.Mlp().eval()
    wrapped, example = wrap(copy.deepcopy(model)).eval(), (nets.image(2, 1, 4, 4),)
    groups = trace(wrapped, example)
    assert [group.name for group in groups] == [group.name for group in trace(model, example)]
    scores = {group.name: torch.arange(float(group.size)) for group in groups}
    plan = choose(groups, scores, ratio=0.5)
    small = apply(wrapped, plan, groups)
    assert isinstance(small, nets.Mlp)
    assert verify(wrapped, wrap(copy.deepcopy(small)), plan, groups).max_relative_error < 1e-6
    save_pruned(tmp_path / "saved", wrap(small), plan, example)
    for build in (nets.Mlp, lambda: wrap(nets.Mlp())):
        loaded = load_pruned(build, tmp_path / "saved").eval()
        assert torch.equal(loaded(*example), small.eval()(*example))
        assert plan_of(loaded) == plan_of(small)


def test_looking_for_a_wrapper_loads_no_compiler() -> None:
    code = "import sys, torch; from deadweight.export.opened import unwrapped\n"
    code += "unwrapped(torch.nn.Linear(1, 1)); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_network_that_is_spread_over_processes_is_refused_with_the_cure() -> None:
    class Spread(nn.Parameter):
        def full_tensor(self) -> None: ...

    model = nn.Linear(4, 3)
    model.weight = Spread(torch.zeros(3, 4))
    with pytest.raises(ModelError, match=r'(?s)"weight" is spread over several.*full state dict'):
        unwrapped(model)
