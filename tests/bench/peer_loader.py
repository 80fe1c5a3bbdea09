"""Peer `loader`: a torch DataLoader with a worker a core, and the loop of the tutorials."""

from __future__ import annotations

import time
from typing import Any

from peer_model import BATCH, CORES, best_class, build, files_of, steady_rate, torchvision_transform


class Photos:
    def __init__(self, files: list[str], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.files[index]).convert("RGB"))


def loader(images: str, name: str, weights: str, *_: str) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    module, spec = build(name, weights)
    photos = Photos(files_of(images), torchvision_transform(spec))
    found, ends = [], []
    for batch in DataLoader(photos, batch_size=BATCH, num_workers=CORES):
        found.append(best_class(module, batch))
        ends += [time.time()] * len(batch)
    return {"rows": len(ends), "steady": steady_rate(ends)}
