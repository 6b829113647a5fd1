"""The log "tensorboard:DIR": event files in DIR/NAME, relative to the recipe, and the report beside them."""

from __future__ import annotations

import shutil

from .log import Entry, Log


def log(place: str, first: Entry) -> Log:
    """Opens an event file; figures become scalars by the number of finished stages, all else text."""
    from torch.utils.tensorboard import SummaryWriter

    folder = first.folder / place / first.run
    writer = SummaryWriter(str(folder))

    def write(entry: Entry) -> None:
        for name, value in entry.figures.items():
            writer.add_scalar(name, value, entry.step)
        for name, text in {**entry.settings, **entry.words}.items():
            writer.add_text(name, text, entry.step)
        for path in entry.files:
            shutil.copy(path, folder)
        writer.flush()
        if entry.status != "running":
            writer.close()

    return write
