"""Make what "Train it here" shows, the first page's two networks that train in the browser:

    OMP_NUM_THREADS=1 python workflow/trainer.py

It condenses scikit-learn's digits to one image per class for the MLP, by the recipe of MD with nothing changed, with
three seeds. The page ships set 0, whatever it reaches. Then it trains the networks of the page's seeds 1 to 50 with
gmlib, from the same weights and on the same images as the page. The set and all accuracies go to results/trainer/.
This takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gmlib as gm
from gmlib import networks
from gmlib.evaluation import Protocol, accuracy
from gmlib.files import write_json
from gmlib.runs.provenance import environment
from gmlib.runs.shipped import results_folder
from gmlib.runtime import generator
from gmlib.speed.training import fit

METHOD, NETWORK = "MD", "mlp"
SETS, SEEDS = 3, 50
STEPS = (0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 60, 75, 90, 110, 130, 150, 180, 210, 240, 270, 300)
PROTOCOL = Protocol(epochs=STEPS[-1], augment="none")  # a step takes all ten images, so it is an epoch


def uniform(seed: int, n: int) -> np.ndarray:
    """The first n numbers of mulberry32, as the page's script draws them: float64 in [0, 1)."""
    mask = np.uint64(0xFFFFFFFF)
    a = (np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x6D2B79F5)) & mask
    t = ((a ^ (a >> np.uint64(15))) * (a | np.uint64(1))) & mask
    t ^= (t + (((t ^ (t >> np.uint64(7))) * (t | np.uint64(61))) & mask)) & mask
    return (t ^ (t >> np.uint64(14))).astype(np.float64) / 2**32


def start(data: gm.Data, seed: int) -> tuple[list[int], nn.Module]:
    """The random images of a seed, as numbers of training images, and the network both sets start from.

    One generator draws an image of each class, then the weights layer by layer, from the distribution that PyTorch
    uses by default.
    """
    network = networks.build(NETWORK, data.shape, data.n_classes, generator=generator(0))
    drawn = uniform(seed, data.n_classes + sum(p.numel() for p in network.parameters()))
    firsts = np.cumsum([0, *data.counts[:-1]])
    chosen = firsts + np.floor(drawn[: data.n_classes] * np.array(data.counts)).astype(int)
    values, at = 2 * drawn[data.n_classes :] - 1, 0
    for layer in network:
        if isinstance(layer, nn.Linear):
            for p in (layer.weight, layer.bias):
                some = values[at : at + p.numel()] / math.sqrt(layer.in_features)
                p.data = torch.from_numpy(some.astype(np.float32)).view_as(p)
                at += p.numel()
    return chosen.tolist(), network


def train(
    network: nn.Module, images: Tensor, labels: Tensor, data: gm.Data, steps: Sequence[int] = ()
) -> list[float]:
    """Train in place. Returns the accuracies after these numbers of steps, or the last one alone."""
    found: list[float] = []
    taken = 0

    def test() -> None:
        nonlocal taken
        if taken in steps:
            found.append(accuracy(network, data.test_images, data.test_labels))
        taken += 1

    names = ("epochs", "optimiser", "lr", "momentum", "weight_decay", "batch")
    options = {name: value for name, value in asdict(PROTOCOL).items() if name in names}
    fit(network, images, labels, rng=generator(0), before_step=test, **options)
    return [*found, accuracy(network, data.test_images, data.test_labels)]


def measure(data: gm.Data, sets: Sequence[gm.SyntheticSet], seeds: Sequence[int]) -> dict[str, Any]:
    """Train on random, condensed, herded and all digits. Returns accuracies in plain JSON types."""
    labels = data.labels_of(1)
    herded = [gm.coreset("herding", data, 1, seed=seed, network=NETWORK) for seed in range(len(sets))]

    def last(images: Tensor, labels: Tensor, seed: int) -> float:
        return train(start(data, seed)[1], images, labels, data)[-1]

    random = {seed: data.train_images[start(data, seed)[0]] for seed in seeds}
    few = list(seeds)[: max(1, len(seeds) // 10)]
    shown = {
        name: train(start(data, seeds[0])[1], images, labels, data, STEPS[:-1])
        for name, images in (("random", random[seeds[0]]), ("condensed", sets[0].images))
    }
    return {
        "seeds": list(seeds),
        "random": [last(random[seed], labels, seed) for seed in seeds],
        "condensed": [last(sets[0].images, labels, seed) for seed in seeds],
        "herding": [last(herded[i % len(herded)].images, labels, seed) for i, seed in enumerate(seeds)],
        "other_sets": [[last(S.images, labels, seed) for seed in few] for S in sets[1:]],
        "all_training_images": [last(data.train_images, data.train_labels, seed) for seed in few],
        "steps": list(STEPS),
        "shown": {"seed": seeds[0], "random_images": start(data, seeds[0])[0], "accuracies": shown},
    }


def main() -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: results/trainer of the repository")
    parser.add_argument("--quick", action="store_true", help="two poor sets and three seeds, to check that it runs")
    given = parser.parse_args()
    out = given.out or results_folder() / "trainer"
    data = gm.load_data("digits")
    changes = {"outer_loops": 20} if given.quick else {}
    began = time.monotonic()
    recipes = [
        gm.Recipe.for_method(METHOD, data.name, 1, seed=seed, network=NETWORK, **changes)
        for seed in range(2 if given.quick else SETS)
    ]
    sets = [gm.condense(data, recipe, device="cpu") for recipe in recipes]
    seconds = (time.monotonic() - began) / len(sets)
    found = measure(data, sets, range(1, 4 if given.quick else SEEDS + 1))
    content = {
        "recipe": recipes[0].as_dict(),
        "seconds": seconds,
        "data": {"name": data.name, "fingerprint": data.fingerprint, "origin": data.origin},
        "set": sets[0].fingerprint,
        "network": NETWORK,
        "protocol": asdict(PROTOCOL),
        **environment(torch.device("cpu")),
        **found,
    }
    sets[0].save(out / "set.safetensors", dtype=torch.float32)
    write_json(out / "run.json", content)
    for name in ("random", "herding", "condensed", "all_training_images"):
        print(f"{name}: {np.mean(found[name]):.1f} % on average, {min(found[name]):.1f} to {max(found[name]):.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
