"""A set of gmlib, judged by DD-Ranking (the package ddranking from PyPI), means what it means here."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_recipe

import gmlib as gm
from gmlib.judging import Judgement
from gmlib.networks import convnet

DD_SCALE = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # mean and std of DD-Ranking for CIFAR-10
RATES = (0.001, 0.005, 0.01, 0.05, 0.1)  # DD-Ranking tries these for random images
EPOCHS = 10  # DD-Ranking tests after every tenth epoch only, so this is also the last epoch
N_TEST = 200


def photos(per_class, seed):
    """Made-up images of CIFAR-10's size, (N, 32, 32, 3) uint8. Classes differ a little, so networks make mistakes."""
    pattern = np.random.default_rng(0).uniform(size=(10, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    labels = np.arange(10).repeat(per_class)
    noise = np.random.default_rng(seed).uniform(size=(len(labels), 32, 32, 3))
    return (255 * (0.12 * pattern[labels] + 0.88 * noise)).astype(np.uint8), labels


PARTS = {True: photos(10, seed=1), False: photos(N_TEST // 10, seed=2)}


class StandIn(torch.utils.data.Dataset):
    """Reads like torchvision's CIFAR10, from arrays: nothing is downloaded or unpickled."""

    def __init__(self, root, train, transform, download):
        self.images, self.labels = PARTS[train]
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), int(self.labels[i])


@pytest.fixture
def ddranking(monkeypatch):
    """DD-Ranking on the stand-in. ``started`` gets the first weights of each network that it trains."""
    pytest.importorskip("ddranking", reason="ddranking is not installed: `pip install ddranking` adds this check")
    from ddranking.metrics import hard_label
    from ddranking.utils import REAL_DATA_TRAINING_CONFIG, data, set_seed

    started = []

    def build_model(*args, **options):
        network = original(*args, **options)
        started.append([value.clone() for value in network.state_dict().values()])
        return network

    original = hard_label.build_model
    monkeypatch.setattr(hard_label, "build_model", build_model)
    monkeypatch.setattr(hard_label, "set_seed", lambda: set_seed(0))  # it takes the clock
    monkeypatch.setattr(data.datasets, "CIFAR10", StandIn)
    # Version 0.2.0 lists each score twice and then cannot write its table.
    monkeypatch.setattr(hard_label, "save_results", lambda results, path: None)
    # On real data it divides the learning rate after 100 epochs. gmlib divides it after half of them.
    monkeypatch.setitem(REAL_DATA_TRAINING_CONFIG["CIFAR10-ConvNet-3"], "step_size", EPOCHS // 2)
    return SimpleNamespace(Evaluator=hard_label.LabelRobustScoreHard, started=started)


@pytest.mark.filterwarnings("ignore")  # warnings of ddranking and of what it imports
def test_dd_ranking_finds_the_hlr_and_ior_that_gmlib_finds(ddranking, tmp_path):
    data = gm.Data.from_arrays("made-up", *PARTS[True], *PARTS[False])
    S = gm.condense(data, tiny_recipe(ipc=1, init="real"), device="cpu", progress=False)
    S.rescaled(*DD_SCALE).to_npz(tmp_path / "set.npz")

    # as a user of DD-Ranking
    with np.load(tmp_path / "set.npz", allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    judge = ddranking.Evaluator(
        dataset="CIFAR10",
        ipc=1,
        model_name="ConvNet-3",
        data_aug_func=None,
        step_size=EPOCHS // 2,
        num_epochs=EPOCHS,
        num_eval=1,
        num_workers=0,
        device="cpu",
        eval_full_data=True,
        random_data_path=str(tmp_path),
        save_path=str(tmp_path / "scores.csv"),
    )
    theirs = judge.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=0.01)

    # The same with gmlib: its own loop trains its own ConvNet from the same first weights.
    scaled = data.rescaled(*DD_SCALE)
    on_set_weights, on_all_weights, *on_random_weights = ddranking.started

    def ours(images, weights, lr=0.01):
        def from_their_weights(channels, size, n_classes):
            network = convnet(channels, size, n_classes)
            network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
            return network

        options = {"lr": lr, "epochs": EPOCHS, "device": "cpu", "progress": False}
        return gm.evaluate(images, scaled, from_their_weights, n_networks=1, **options)

    on_set = ours(gm.SyntheticSet.from_npz(tmp_path / "set.npz"), on_set_weights)
    on_all = ours(scaled, on_all_weights)
    drawn = torch.load(tmp_path / "rdm_data_iter0.pt", weights_only=True)
    random = gm.SyntheticSet.from_arrays(drawn, labels, data.classes, *DD_SCALE, normalised=True)
    on_random = [ours(random, weights, lr) for lr, weights in zip(RATES, on_random_weights, strict=True)]
    best = max(on_random, key=lambda found: found.mean)
    found = Judgement(on_set, (best,), on_all, data.name, data.classes, S.counts, len(PARTS[True][1]), N_TEST)

    two_images = 200 / N_TEST  # rounding may change the class of a test image or two
    assert theirs["hard_label_recovery_mean"] == pytest.approx(found.hlr, abs=two_images)
    assert theirs["improvement_over_random_mean"] == pytest.approx(found.ior, abs=two_images)
    assert 20 < on_set.mean < on_all.mean  # chance is 10: without learning the two would agree anyway
