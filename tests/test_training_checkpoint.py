"""Networks in training are kept between epochs, and a training that continues ends with the same bits."""

import pytest
import torch
from conftest import make_data
from messages import refuses

import gmlib as gm
from gmlib import augment, checkpoint, coresets, networks
from gmlib.checkpoint import TrainingCheckpoint
from gmlib.runs import store
from gmlib.runtime import generator
from gmlib.speed.training import Training, fit


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def after_every_epoch(monkeypatch):
    """Write after every epoch instead of once a minute."""
    monkeypatch.setattr(checkpoint, "TRAINING_SECONDS", 0.0)


@pytest.fixture
def data():
    return make_data((8, 8, 8), dtype=torch.float32)


def trained(data, path=None, killed_at=None, *, n=2, epochs=6, network="convnet:norm=batch", **options):
    """The tensors of networks after ``fit``. Killed_at: in the middle of this epoch, counted from 0 in this call."""
    group = [
        networks.build(network, data.shape, 3, generator=generator(j), width=4, depth=1, dtype=torch.float64)
        for j in range(n)
    ]
    rngs, begun = [generator(0, "rng", j) for j in range(n)], []
    x = data.train_images.double()

    def vary(x):
        begun.append(0)
        if killed_at is not None and len(begun) > killed_at:
            raise Killed
        return augment.apply_operations(x, ("shift", "noise"), rngs)

    kept = TrainingCheckpoint(path, {"seed": 0})
    fit(group, x, data.train_labels, epochs=epochs, rng=rngs, batch=10, vary=vary, checkpoint=kept, **options)
    states = [{**dict(each.named_parameters()), **dict(each.named_buffers())} for each in group]
    return [value.detach() for state in states for value in state.values()], len(begun)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_training_that_was_killed_in_any_epoch_ends_with_the_same_bits(optimiser, data, tmp_path):
    expected, _ = trained(data, optimiser=optimiser)
    for epoch in range(1, 6):
        path = tmp_path / f"{epoch}.safetensors"
        with pytest.raises(Killed):
            trained(data, path, killed_at=epoch, optimiser=optimiser)
        with pytest.raises(Killed):
            trained(data, path, killed_at=0, optimiser=optimiser)
        found, again = trained(data, path, optimiser=optimiser)
        assert same(found, expected) and again == 6 - epoch, "and no epoch is done twice"


def test_without_momentum_and_alone(data, tmp_path):
    options = {"momentum": 0.0, "n": 1, "network": "mlp"}
    expected, _ = trained(data, **options)
    with pytest.raises(Killed):
        trained(data, tmp_path / "one.safetensors", killed_at=4, **options)
    assert same(trained(data, tmp_path / "one.safetensors", **options)[0], expected)


def test_it_is_written_once_a_minute(data, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "TRAINING_SECONDS", 60.0)
    path, now = tmp_path / "one.safetensors", [0.0]
    written = []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "write_tensors", lambda path, tensors, about: written.append(about))

    def vary(x):
        now[0] += 25
        return x

    network = networks.build("mlp", data.shape, 3, generator=generator(0))
    x, y, kept = data.train_images, data.train_labels, TrainingCheckpoint(path, {})
    fit(network, x, y, epochs=7, rng=generator(0), vary=vary, checkpoint=kept)
    assert [(each["epochs"], each["seconds"]) for each in written] == [("3", "75.0"), ("6", "150.0")]


def test_the_file_of_other_networks_is_replaced_and_a_damaged_one_refused(data, tmp_path):
    path = tmp_path / "one.safetensors"
    trained(data, path)
    other = TrainingCheckpoint(path, {"seed": 1})
    assert other.seconds() == 0 and TrainingCheckpoint(path, {"seed": 0}).seconds() > 0
    network = networks.build("mlp", data.shape, 3, generator=generator(0))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    training = Training([network], optimiser, [generator(0)])
    assert other.restore(training) == 0
    other.keep(3, training)
    assert other.restore(training) == 3
    path.write_bytes(path.read_bytes()[:-1])
    with refuses(ValueError, str(path), "damaged", "delete it and run again"):
        other.restore(training)
    other.delete()
    other.delete()
    assert not path.exists()


# ---- evaluate, coreset and stored runs


def interrupted_after(monkeypatch, epochs):
    """Let the next trainings be killed after so many epochs in all, right after the last one was kept."""
    keep, done = TrainingCheckpoint.keep, []

    def counted(self, *arguments):
        keep(self, *arguments)
        done.append(arguments[0])
        if len(done) == epochs:
            raise Killed

    monkeypatch.setattr(TrainingCheckpoint, "keep", counted)
    return done


def test_evaluate_continues_networks_in_training(data, tmp_path, monkeypatch):
    S = gm.coreset("random", data, 2)
    options = {"epochs": 4, "width": 4, "depth": 1, "augment": "dsa:flip", "progress": False, "device": "cpu"}
    expected = gm.evaluate(S, data, n_networks=3, **options)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 6)  # in the second network
        so_far = []
        with pytest.raises(Killed):
            gm.evaluate(S, data, n_networks=3, checkpoint=tmp_path, each=so_far.append, **options)
    (left,) = tmp_path.iterdir()
    assert left.name == "training-convnet-1.safetensors" and so_far[-1].trained == 1
    monkeypatch.setattr(TrainingCheckpoint, "seconds", lambda self: 1000.0 if self.path.exists() else 0.0)
    with monkeypatch.context() as patch:
        done = interrupted_after(patch, None)
        found = gm.evaluate(S, data, n_networks=3, checkpoint=tmp_path, known=so_far[-1], **options)
    assert found.accuracies == expected.accuracies and found.seconds > 1000
    assert done == [3, 4, 1, 2, 3, 4], "two epochs of the second network were not repeated"
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_what_a_killed_process_left_of_a_finished_network_is_deleted(data, tmp_path):
    S = gm.coreset("random", data, 2)
    options = {"epochs": 1, "width": 4, "depth": 1, "progress": False, "device": "cpu"}
    so_far = gm.evaluate(S, data, n_networks=1, **options)
    (tmp_path / "training-convnet-0.safetensors").write_bytes(b"")
    gm.evaluate(S, data, n_networks=2, known=so_far, checkpoint=tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [gm.evaluate, gm.coreset])
def test_the_folder_must_exist(function, data, tmp_path):
    first = (gm.coreset("random", data, 2), data) if function is gm.evaluate else ("random", data, 2)
    with refuses(ValueError, "no folder", "missing", "checkpoint="):
        function(*first, checkpoint=tmp_path / "missing")


def test_a_coreset_continues_its_network(data, tmp_path, monkeypatch):
    options = {"width": 4, "depth": 1, "epochs": 5, "device": "cpu"}
    expected = gm.coreset("herding", data, 2, **options)
    coresets._trained.clear()
    with monkeypatch.context() as patch:
        interrupted_after(patch, 3)
        with pytest.raises(Killed):
            gm.coreset("herding", data, 2, checkpoint=tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == [coresets.TRAINING]
    with monkeypatch.context() as patch:
        done = interrupted_after(patch, None)
        assert torch.equal(gm.coreset("herding", data, 2, checkpoint=tmp_path, **options).images, expected.images)
    assert done == [4, 5]
    coresets._trained.clear()


def test_a_stored_run_continues_all_its_trainings(data, tmp_path, monkeypatch):
    options = {"budget": "smoke", "networks": 2, "width": 4, "depth": 1, "device": "cpu", "progress": False}

    def stored(results):
        coresets._trained.clear()
        return store.run(data, "herding", 1, results_dir=tmp_path / results, **options)

    with monkeypatch.context() as patch:
        needed = interrupted_after(patch, None)
        expected = stored("whole")
    killed = (1, 2, 9, 30)  # in the feature network, and in both networks on the set
    for epochs in killed:
        with monkeypatch.context() as patch:
            interrupted_after(patch, epochs)
            with pytest.raises(Killed):
                stored("killed")
    with monkeypatch.context() as patch:
        done = interrupted_after(patch, None)
        found = stored("killed")
    assert sum(killed) + len(done) == len(needed), "no epoch was done twice"
    assert found.evaluation.accuracies == expected.evaluation.accuracies
    assert torch.equal(found.S.images, expected.S.images)
    names = [sorted(path.name for path in run.folder.iterdir()) for run in (found, expected)]
    assert names[0] == names[1], "nothing is left"


def test_the_seconds_of_killed_processes_count(data, tmp_path, monkeypatch):
    options = {"budget": "smoke", "networks": 1, "width": 4, "depth": 1, "device": "cpu", "progress": False}
    monkeypatch.setattr(TrainingCheckpoint, "seconds", lambda self: 1000.0)
    coresets._trained.clear()
    found = store.run(data, "herding", 1, results_dir=tmp_path, **options)
    coresets._trained.clear()
    assert 1000 < found.record["seconds"] < 1100 and 1000 < found.evaluation.seconds < 1100


def test_a_file_that_was_left_after_the_last_network_is_deleted(data, tmp_path):
    options = {"budget": "smoke", "networks": 1, "width": 4, "depth": 1, "device": "cpu", "progress": False}
    folder = store.run(data, "random", 1, results_dir=tmp_path, **options).folder
    left, other = folder / "training-convnet-0.safetensors", folder / "training-convnet-mine.safetensors"
    left.touch()
    other.touch()
    store.run(data, "random", 1, results_dir=tmp_path, **options)
    assert not left.exists() and other.exists()


def test_a_layout_of_ones_own_is_kept(data, tmp_path):
    """Momentum pairs with weights by their places in memory."""

    def train(path=None, killed_at=None):
        network = networks.build("convnet", data.shape, 3, generator=generator(0), width=4, depth=2)
        network = network.to(memory_format=torch.channels_last)
        begun = []

        def vary(x):
            begun.append(0)
            if killed_at is not None and len(begun) > killed_at:
                raise Killed
            return x

        kept = TrainingCheckpoint(path, {})
        fit(network, data.train_images, data.train_labels, epochs=4, rng=generator(0), vary=vary, checkpoint=kept)
        return list(network.parameters())

    with pytest.raises(Killed):
        train(tmp_path / "one.safetensors", killed_at=3)
    assert same(train(tmp_path / "one.safetensors"), train())


def test_a_network_with_other_layers_of_the_same_name_starts_anew(data, tmp_path):
    def one(activation, dtype=torch.float32):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), activation(), torch.nn.Linear(4, 3))
        return network.to(dtype)

    def epochs_left(network):
        kept, done = TrainingCheckpoint(tmp_path / "one.safetensors", {}), []
        x = data.train_images.to(next(network.parameters()).dtype)
        fit(
            network,
            x,
            data.train_labels,
            epochs=2,
            rng=generator(0),
            vary=lambda x: (done.append(0), x)[1],
            checkpoint=kept,
        )
        return len(done)

    assert epochs_left(one(torch.nn.ReLU)) == 2 and epochs_left(one(torch.nn.ReLU)) == 0
    assert epochs_left(one(torch.nn.Tanh)) == 2
    assert epochs_left(one(torch.nn.Tanh, torch.float64)) == 2


def test_a_full_disk_does_not_end_a_training(data, tmp_path, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    expected, _ = trained(data)
    monkeypatch.setattr(checkpoint, "write_tensors", full)
    found, _ = trained(data, tmp_path / "one.safetensors")
    assert same(found, expected) and "not kept: [Errno 28] No space left" in caplog.text
