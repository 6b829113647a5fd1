"""The stage "cluster": weight clustering with trained code books.

Han et al. 2016, "Deep Compression", section 3: every weight becomes the nearest entry of its layer's code
book; in training, the gradients of all weights of one entry are added (or averaged), so that they stay one
value. Weights that are zero, e.g. after `sparsify`, stay zero. It saves bytes once the file is packed:
`deadweight pack`. Export folds batch norms into convolutions channel by channel, which destroys the shared
values: for such a network, cluster the exported file instead, with `deadweight pack --clusters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ...export.coding.cluster import Clusters, Start, shortened
from ...export.coding.cluster import cluster as clustered
from ..compression.masks import named, weights_of
from ..pruning.narrow import copied_module
from ..training.loop import Schedule, TrainingJob, fit
from ..training.predict import validation_score
from ..work import Work
from ..workload import Workload

Bits = Annotated[int, Field(ge=2, le=8)]
Gradient = Literal["sum", "mean"]
Books = Mapping[str, Clusters]
"""The code book of each parameter, by name."""


@dataclass(frozen=True)
class Cluster:
    """Clusters the newest network; the result is the network "clustered".

    Attributes:
        bits: a code book has at most 2 ** bits values, besides zero.
        bits_of: another number for single layers by name.
        shared: whether layers with the same number of bits share one code book.
        start, price: see `export.coding.cluster`.
        gradient: whether a value is updated by the sum or the mean of its weights' gradients. With an
            optimizer that scales gradients, such as Adam, the difference is small.
        epochs, learning_rate: of the training of the code books.
        short: whether biases and code books are rounded to bfloat16, half the bytes.
        dense: names of layers that are not clustered.
    """

    bits: Bits = 5
    bits_of: dict[str, Bits] = field(default_factory=dict)
    shared: bool = False
    start: Start = "linear"
    price: Annotated[float, Field(ge=0)] = 0.0
    gradient: Gradient = "sum"
    epochs: Annotated[int, Field(ge=0)] = 3
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    short: bool = True
    dense: tuple[str, ...] = ()

    def __call__(self, work: Work) -> Work:
        latest = work.latest()
        model = copied_module(work.model(latest), {})
        books = self._books(model, work.seed)
        set_values(model, books)
        if self.epochs:
            own = dataclasses.replace(
                work, workload=cast(Workload, _Tied(work.workload, books, self.gradient))
            )
            job = TrainingJob.of(own, Schedule(self.epochs, self.learning_rate), "cluster")
            model = fit(model, job).model
            books = trained_books(model, books)
        if self.short:
            books = {name: Clusters(shortened(one.book), one.index) for name, one in books.items()}
            with torch.no_grad():
                for name, parameter in model.named_parameters():  # biases and norms
                    if name not in books and parameter.dim() == 1 and parameter.dtype == torch.float32:
                        parameter.copy_(torch.from_numpy(shortened(parameter.detach().cpu().numpy())))
        set_values(model, books)
        score = validation_score(work.workload, model)
        sizes = ", ".join(f"{name} {len(one.book)}" for name, one in books.items())
        words = f"values: {sizes}; validation {work.workload.score_name} {score:.4f}"
        return work.with_model("clustered", model, plan=work.plan(latest)).logged("cluster", self, words)

    def _books(self, model: nn.Module, seed: int) -> Books:
        weights = {name: one.detach().cpu().numpy() for name, one in weights_of(model, self.dense).items()}
        bits_of = {name: bits for layer, bits in self.bits_of.items() for name in named(weights, layer)}
        groups: dict[tuple[int, str], list[str]] = {}
        for name in weights:
            groups.setdefault((bits_of.get(name, self.bits), "" if self.shared else name), []).append(name)
        books: dict[str, Clusters] = {}
        for (bits, _), names in groups.items():
            group = {name: weights[name] for name in names}
            made = clustered(group, bits, start=self.start, price=self.price, seed=seed)
            books |= {name: Clusters(made.book, {one: made.index[one] for one in names}) for name in names}
        return books


def set_values(model: nn.Module, books: Books) -> None:
    """Sets weights to the values of their code books."""
    with torch.no_grad():
        for name, one in books.items():
            model.get_parameter(name).copy_(torch.from_numpy(one.values(name)))


def trained_books(model: nn.Module, books: Books) -> dict[str, Clusters]:
    """Code books after training: the mean of each entry's weights, which differ only by rounding."""
    parameters = dict(model.named_parameters())
    made = {}
    for name, one in books.items():
        sums = torch.zeros(len(one.book) + 1, dtype=torch.float64)
        counts = torch.zeros(len(one.book) + 1, dtype=torch.float64)
        for member, index in one.index.items():
            place = torch.from_numpy(index.reshape(-1))
            values = parameters[member].detach().cpu().double().reshape(-1)
            sums.index_add_(0, place, values)
            counts.index_add_(0, place, torch.ones_like(values))
        made[name] = Clusters((sums / counts.clamp(min=1))[1:].float().numpy(), one.index)
    return made


def share_gradients(model: nn.Module, books: Books, gradient: Gradient) -> None:
    """Gives all weights of an entry one gradient, across layers that share the book; zeros get none."""
    parameters = dict(model.named_parameters())
    for members in {tuple(one.index): one for one in books.values()}.values():
        gradients = [parameters[name].grad for name in members.index]
        if any(one is None for one in gradients):
            continue  # a layer that this batch did not use
        device = cast(Tensor, gradients[0]).device
        places = [torch.from_numpy(index.reshape(-1)).to(device) for index in members.index.values()]
        sums = torch.zeros(len(members.book) + 1, device=device)
        counts = torch.zeros_like(sums)
        for place, own in zip(places, gradients, strict=True):
            sums.index_add_(0, place, cast(Tensor, own).reshape(-1))
            if gradient == "mean":
                counts += torch.bincount(place, minlength=len(sums))
        sums = sums / counts.clamp(min=1) if gradient == "mean" else sums
        sums[0] = 0
        for place, own in zip(places, gradients, strict=True):
            cast(Tensor, own).copy_(sums[place].reshape(cast(Tensor, own).shape))


@dataclass(frozen=True)
class _Tied:
    """A workload whose optimizer updates the weights of an entry together."""

    inner: Workload
    books: Books
    gradient: Gradient

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def optimizer(self, model: nn.Module) -> Any:
        made = self.inner.optimizer(model)
        made.register_step_pre_hook(lambda *_: share_gradients(model, self.books, self.gradient))
        return made
