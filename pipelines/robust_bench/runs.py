"""One network: trained, attacked, and kept, so that later calls add only what is missing."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nec.lowrank import (
    compression,
    condition_bound,
    condition_number,
    convert,
    lowrank_layers,
)
from robust_bench.attacked import BLOCK, Threat, answers_right, outcomes
from robust_bench.images import Parts
from robust_bench.networks import make, parameters
from robust_bench.training import CONVERTED, Recipe, train


@dataclass(frozen=True)
class Run:
    """What is trained, and where it is kept.

    Attributes
    ----------
    folder : Path
    row : str
        Of the table.
    seed : int
    network : str
        "vgg" or "vit".
    width : float
        Fraction of the published one.
    recipe : Recipe
    """

    folder: Path
    row: str
    seed: int
    network: str
    width: float
    recipe: Recipe

    @property
    def path(self) -> Path:
        """The record; weights lie beside it."""
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in self.row)
        return self.folder / self.network / f"{name}_{self.seed}.json"

    def answer(self, parts: Parts, threat: Threat, count: int) -> dict[str, Any]:
        """Return the record with clean answers to all test images, attacked ones to `count`.

        Raises
        ------
        SystemExit
            If an earlier call trained or attacked otherwise.
        """
        record = self.read(parts)
        wanted = json.loads(json.dumps(dataclasses.asdict(threat)))
        if record is not None and record.get("threat", wanted) != wanted:
            raise SystemExit(f"{self.path} was attacked otherwise: give another --runs")
        if record is None or _attacked(record) < count:
            model = self.train(parts)
            record = self.read(parts) or {}
            self._attack(model, record | {"threat": wanted}, parts, threat, count)
            record = self.read(parts) or {}
        return record

    def read(self, parts: Parts) -> dict[str, Any] | None:
        """Return what is kept of the run; None before it is trained.

        Raises
        ------
        SystemExit
            If an earlier call trained otherwise.
        """
        if not self.path.exists():
            return None
        record: dict[str, Any] = json.loads(self.path.read_text())
        if record["settings"] != self._settings(parts):
            raise SystemExit(f"{self.path} was trained otherwise: give another --runs")
        return record

    def train(self, parts: Parts) -> nn.Module:
        """Train the network, or load what an earlier call trained."""
        torch.manual_seed(self.seed)
        classes = int(parts.training.labels.max()) + 1
        model = make(self.network, self.width, classes, parts.moments)
        weights = self.path.with_suffix(".pt")
        if self.read(parts) is not None:
            if self.recipe.low_rank:
                # Ranks come with the weights.
                convert(model, rank=1, **CONVERTED)
            model.load_state_dict(torch.load(weights, weights_only=True))
            model.to(memory_format=torch.channels_last)
            return model.eval().requires_grad_(False)
        start = time.process_time()
        progress = train(model, self.recipe, parts.training, seed=self.seed)
        record = {
            "settings": self._settings(parts),
            "parameters": parameters(model),
            "train_cpu_seconds": round(time.process_time() - start, 1),
            "progress": dataclasses.asdict(progress),
        }
        model.eval().requires_grad_(False)
        if self.recipe.low_rank:
            saved = compression(model, parts.test.images[:1])
            layers = lowrank_layers(model)
            record |= {
                "compression": {k: getattr(saved, k) for k in ("layers", "model", "flops")},
                "ranks": {name: list(layer.ranks) for name, layer in layers.items()},
                "condition": {name: condition_number(v.core) for name, v in layers.items()},
                "bound": {name: condition_bound(v.core) for name, v in layers.items()},
            }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights)
        self._keep(record)
        return model

    def _settings(self, parts: Parts) -> dict[str, Any]:
        return {
            "row": self.row,
            "seed": self.seed,
            "network": self.network,
            "width": self.width,
            "recipe": dataclasses.asdict(self.recipe),
            "training_images": len(parts.training.labels),
            "pixels": parts.training.images.shape[-1],
        }

    def _attack(
        self, model: nn.Module, record: dict[str, Any], parts: Parts, threat: Threat, count: int
    ) -> None:
        """Attack the images that no earlier call attacked, a block at a time."""
        test = parts.test
        right = record.setdefault("right", {})
        if "clean" not in right:
            right["clean"] = _digits(answers_right(model, test.images, test.labels))
        for at in range(_attacked(record), count, BLOCK):
            start = time.process_time()
            part = slice(at, min(at + BLOCK, count))
            found = outcomes(model, test.images[part], test.labels[part], threat)
            for key, value in found.items():
                right[key] = right.get(key, "") + _digits(value)
            spent = record.get("attack_cpu_seconds", 0.0) + time.process_time() - start
            record["attack_cpu_seconds"] = round(spent, 1)
            self._keep(record)

    def _keep(self, record: dict[str, Any]) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(record) + "\n")
        part.replace(self.path)


def _attacked(record: dict[str, Any]) -> int:
    """Count the test images that every attack of an earlier call was run on."""
    return min((len(v) for k, v in record.get("right", {}).items() if k != "clean"), default=0)


def _digits(right: Any) -> str:
    return "".join("1" if value else "0" for value in right)
