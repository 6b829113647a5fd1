"""The factories with the real libraries, the user's own installs: each network learns and is scored."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.workload import built_model, example_batch, split_batches
from deadweight.pipeline.workloads.named import factories, load_workload

DATA = """
import torch

def images():
    batch = {"x": torch.rand(8, 3, 64, 64), "label": torch.arange(8) % 3}
    return {"train": [batch], "validation": [batch]}

def tokens():
    ids = torch.randint(5, 40, (8, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(8) % 2}
    return {"train": [batch], "validation": [batch]}

def boxes():
    box = torch.tensor([[[1.0, 8.0, 8.0, 40.0, 40.0], [-1.0, -1.0, -1.0, -1.0, -1.0]]]).repeat(8, 1, 1)
    batch = {"image": torch.rand(8, 3, 64, 64), "label": box}
    return {"train": [batch], "validation": [batch]}
"""
MODULE = """
import lightning
import torch
from torch.nn import functional as F

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, values):
        return self.layer(values)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.5)], []

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(torch.randn(12, 4), torch.arange(12) % 3)
        return torch.utils.data.DataLoader(data, batch_size=4)

    val_dataloader = train_dataloader
"""
SPECS = {
    "timm": "timm:resnet10t?classes=3&data=data.py:images",
    "torchvision": "torchvision:resnet18?classes=3&data=data.py:images",
    "transformers": "transformers:tiny?data=data.py:tokens",
    "lightning": "lightning:module.py:Net?task=classification",
    "ultralytics": "ultralytics:yolo11n.yaml?classes=3&data=data.py:boxes",
}


def test_every_factory_is_tried() -> None:
    assert set(SPECS) == set(factories())


@pytest.mark.slow
@pytest.mark.parametrize("package", SPECS)
def test_a_factorys_network_learns_and_is_scored(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package, reason=f"{package} is the user's own")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "module.py").write_text(MODULE)
    if package == "transformers":
        from transformers import BertConfig, BertForSequenceClassification  # pyright: ignore[reportMissingImports]

        sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64)).save_pretrained(
            tmp_path / "tiny"
        )
    workload = load_workload(SPECS[package], tmp_path)
    model = built_model(workload, seed=0).train()
    batch = next(split_batches(workload, "train"))
    outputs = model(*(batch[name] for name in example_batch(workload)))
    loss = workload.loss(outputs, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(loss))
    workload.optimizer(model).step()
    score = score_of(workload, torch_predict(model, example_batch(workload)), "validation")
    assert 0 <= score <= 1
