"""A user's own data: datasets and folders of photos, rectangular images, uneven classes, images added later."""

import functools

import numpy as np
import pytest
import reference
import torch
from conftest import make_data, photos, tiny_recipe
from messages import refuses
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import gmlib as gm
from gmlib import networks
from gmlib.data import Data
from gmlib.datasets import load_data
from gmlib.lines import fresh_network, initial
from gmlib.runtime import generator
from gmlib.speed import gradients
from gmlib.speed.forward import fast_forward

WIDE = (1, 6, 10)
SMALL = {"width": 4, "depth": 2}


class Items(Dataset):
    """Any items, as a dataset of torch that never ends by itself, with names of classes if there are any."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i % len(self.items)]


def pictures(n=12, shape=(6, 10, 3), seed=0):
    """uint8 images, with labels 0, 1, 2, 0, ..."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 3


class Stream(IterableDataset):
    """It has a length, as one on a disk may, and takes no positions."""

    def __iter__(self):
        return iter([(torch.full((1, 8, 8), 0.1 * i), i % 2) for i in range(8)])

    def __len__(self):
        return 8


def test_a_dataset_that_only_streams_becomes_data():
    assert len(Data.from_dataset(Stream(), progress=False).train_labels) == 6


# ---- from_dataset ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, (12, 20)])
def test_a_folder_read_by_torchvision_is_the_same_data(size, tmp_path):
    photos(tmp_path)
    ours = load_data(f"imagefolder:{tmp_path}", size=size, seed=3, progress=False)
    data = Data.from_dataset(ImageFolder(tmp_path), size=size, seed=3, progress=False)
    assert data.fingerprint == ours.fingerprint and data.classes == ours.classes == ("elm", "oak", "rose")
    assert data.name == "ImageFolder" and "seed 3" in data.origin and "resized" in data.origin
    given = transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()])
    named = Data.from_dataset(ImageFolder(tmp_path, given), name="trees", origin="my garden", progress=False)
    assert named.name == "trees" and named.shape == (3, 16, 16) and named.origin.startswith("my garden")


def test_photos_are_not_changed_by_reading_them():
    image = Image.fromarray(pictures(1)[0][0])
    image.getexif()[274] = 6
    others = [(Image.fromarray(x), c % 2) for c, x in enumerate(pictures(4, (10, 6, 3))[0])]
    items = [(image, 0), (image, 1), *others]
    assert Data.from_dataset(items, progress=False).shape == (3, 10, 6)
    assert image.size == (10, 6) and image.getexif()[274] == 6


def test_photos_of_unlike_sizes_need_a_size(tmp_path):
    with refuses(ValueError, "training image 0", "training image", "size="):
        Data.from_dataset(ImageFolder(photos(tmp_path)), progress=False)


@pytest.mark.parametrize("kind", ["PIL", "numpy", "numpy CHW", "tensor", "float", "dict", "generator", "iterable"])
def test_every_kind_of_item_gives_the_same_data(kind):
    x, y = pictures()
    chw = x.transpose(0, 3, 1, 2).copy()
    items = {
        "PIL": lambda i: (Image.fromarray(x[i]), int(y[i])),
        "numpy": lambda i: (x[i], y[i]),
        "numpy CHW": lambda i: [chw[i], np.array([y[i]])],
        "tensor": lambda i: (torch.from_numpy(chw[i]), torch.tensor(y[i])),
        "float": lambda i: (transforms.ToTensor()(x[i]), int(y[i])),
        "dict": lambda i: {"img": Image.fromarray(x[i]), "label": int(y[i]), "id": i},
        "generator": lambda i: (x[i], y[i]),
        "iterable": lambda i: (x[i], y[i]),
    }
    listed = [items[kind](i) for i in range(12)]

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(listed)

    given = {"generator": (item for item in listed), "iterable": Stream()}.get(kind, Items(listed))
    data = Data.from_dataset(given, listed[:3], progress=False)
    assert data.fingerprint == Data.from_arrays("x", x, y, x[:3], y[:3]).fingerprint
    assert data.name == {"generator": "images", "iterable": "Stream"}.get(kind, "Items")


def test_grey_images_become_colour_beside_colour_and_tensors_are_resized_like_pil_images():
    x, y = pictures()
    grey = Image.fromarray(x[0, ..., 0])
    data = Data.from_dataset([(grey, 0), *((x[i], int(y[i])) for i in range(1, 12))], [(grey, 0)], progress=False)
    assert data.shape == (3, 6, 10) and data.of_class(0).shape[0] == 4
    pixels = data.test_images[0] * torch.tensor(data.std).view(-1, 1, 1) + torch.tensor(data.mean).view(-1, 1, 1)
    assert torch.allclose(pixels, torch.from_numpy(x[0, ..., 0]) / 255, atol=1e-6)
    read = functools.partial(Data.from_dataset, size=(4, 5), progress=False)
    bytes_ = read([(Image.fromarray(x[i]), int(y[i])) for i in range(12)])
    arrays = read([(x[i], int(y[i])) for i in range(12)])
    floats = read([(x[i] / 255, int(y[i])) for i in range(12)])
    assert arrays.fingerprint == bytes_.fingerprint
    assert (floats.train_images - bytes_.train_images).abs().max() < 0.05, "bytes are rounded"


def test_a_dataset_of_tensors():
    x, y = torch.rand(30, *WIDE, generator=generator(0)), torch.arange(30) % 3
    data = Data.from_dataset(TensorDataset(x, y[:, None]), TensorDataset(x[:3], y[:3]), progress=False)
    assert data.fingerprint == Data.from_arrays("x", x, y, x[:3], y[:3]).fingerprint
    assert data.name == "TensorDataset" and data.classes == ("0", "1", "2")


def test_names_of_classes_come_from_the_dataset(caplog):
    x, y = pictures()
    whole = Items([(x[i], int(y[i])) for i in range(12)], classes=["rose", "oak", "elm"])
    data = Data.from_dataset(whole, progress=False)
    assert data.classes == ("rose", "oak", "elm") and not caplog.records
    assert Data.from_dataset(whole, classes=["elm", "rose", "oak"], progress=False).classes == ("elm", "rose", "oak")
    assert Data.from_dataset(whole, classes=["r", "o", "e"], progress=False).classes == ("r", "o", "e")
    two = Data.from_dataset(Subset(Subset(whole, range(12)), [2, 3, 5, 6, 8]), progress=False)
    assert two.classes == ("rose", "elm") and two.name == "Items" and "left out: oak" in caplog.text
    assert Data.from_dataset(ConcatDataset([whole, whole]), progress=False).classes == data.classes
    with refuses(ValueError, "ConcatDataset", "different classes"):
        Data.from_dataset(ConcatDataset([whole, Items(whole.items, ["oak", "rose", "elm"])]), progress=False)


def test_a_test_set_may_number_its_classes_in_another_way():
    """As an ImageFolder does where a class has no folder."""
    x, y = pictures()
    train = Items([(x[i], int(y[i])) for i in range(12)], classes=["elm", "oak", "rose"])
    data = Data.from_dataset(train, Items([(x[0], 0), (x[1], 1)], classes=["oak", "rose"]), progress=False)
    assert data.test_labels.tolist() == [1, 2]
    with refuses(ValueError, "'ash'", "has no training image"):
        Data.from_dataset(train, Items([(x[0], 0)], classes=["ash", "oak"]), progress=False)
    assert Data.from_dataset(train, [(x[0], 2)], progress=False).test_labels.tolist() == [2]
    with refuses(ValueError, "label 2", "2 classes"):
        Data.from_dataset(train, Items([(x[0], 2)], classes=["oak", "rose"]), progress=False)


def test_mnist_read_by_torchvision_has_the_classes_of_load_data():
    x, y = pictures(shape=(4, 4))
    MNIST = type("MNIST", (Items,), {})
    data = Data.from_dataset(MNIST(list(zip(x, y, strict=True)), ["0 - zero", "1 - one", "2 - two"]), progress=False)
    assert (data.name, data.classes) == ("MNIST", ("0", "1", "2"))


ODD = {
    "a path": (lambda x, y: "photos", "is a str", "imagefolder:PATH"),
    "arrays": (lambda x, y: x, "ndarray", "from_arrays"),
    "a pair of arrays": (lambda x, y: (x, y), "training image 0", "from_arrays"),
    "a loader": (lambda x, y: DataLoader(Items(list(zip(x, y, strict=True)))), "DataLoader", "dataset"),
    "a number": (lambda x, y: 7, "is a int", "torch Dataset"),
    "nothing": (lambda x, y: [], "no item"),
    "three parts": (lambda x, y: [(x[0], 0, 0)], "has 3 parts", "(image, label)"),
    "other keys": (lambda x, y: [{"pixels": x[0], "label": 0}], "pixels", "image and label"),
    "a label of floats": (lambda x, y: [(x[0], 0.5)], "0.5", "whole number"),
    "one-hot labels": (lambda x, y: [(x[0], torch.eye(3)[0])], "label of training image 0", "whole number"),
    "no label": (lambda x, y: [(x[0], None)], "None", "whole number"),
    "text for an image": (lambda x, y: [("a.png", 0)], "training image 0", "uint8"),
    "two kinds": (lambda x, y: [(x[0], 0), (x[1] / 255, 1)], "uint8", "float32", "one type"),
    "two readings": (lambda x, y: [(x[0, :3, :3], 0)], "training image 0", "layout="),
    "16 bits": (lambda x, y: [(Image.fromarray(np.zeros((4, 4), np.uint16)), 0)], "training image 0", "8 bits"),
}


@pytest.mark.parametrize("case", ODD)
def test_datasets_that_do_not_fit_are_refused(case):
    make, *words = ODD[case]
    with refuses(ValueError, *words):
        Data.from_dataset(make(*pictures()), progress=False)


@pytest.mark.parametrize("size", [None, 4])
def test_images_that_are_normalised_already_are_refused(size):
    x, y = pictures()
    items = [(transforms.Normalize(0.5, 0.5)(transforms.ToTensor()(x[i])), int(y[i])) for i in range(12)]
    with refuses(ValueError, "values from -1 to", "normalises"):
        Data.from_dataset(items, size=size, progress=False)


# ---- rectangular images ------------------------------------------------------------------------------------


@pytest.fixture
def wide():
    return make_data((8, 6, 7), WIDE)


@pytest.mark.parametrize("way", ["plain", "recorded"])
def test_rectangular_images_are_condensed_as_the_paper_says(way, wide, request):
    """The reference gets the networks and batches that `condense` draws, and must find the same S."""
    graphs = request.getfixturevalue("recorded") if way == "recorded" else None
    T = 3
    options = {"what": "multi", "how": "d1 + d2", "where": "steps:3,1", "outer_loops": 2, "inner_loops": T}
    recipe = tiny_recipe(ipc=2, **options)
    theta0 = [[p.detach() for p in fresh_network(wide, recipe, k).parameters()] for k in range(2)]
    drawing = [[generator(recipe.seed, "batches", k, t) for t in range(T)] for k in range(2)]
    batches = [[[wide.sample(c, recipe.batch_real, rng) for c in range(3)] for rng in some] for some in drawing]
    S = gm.condense(wide, recipe, device="cpu", progress=False)
    zeta = lambda t: (3, 1, 1)[t]  # noqa: E731
    rates = recipe.lr_images, recipe.momentum_images, recipe.lr_network, recipe.momentum_network
    start = initial(wide, recipe)
    theirs, _ = reference.algorithm1(
        start, S.labels, theta0, batches, "multi", [(1.0, "d1"), (1.0, "d2")], 3, T, zeta, *rates
    )
    assert S.images.shape == (6, *WIDE) and (S.images - start).norm() > 0.01
    assert (S.images - theirs).norm() < 1e-8 * theirs.norm()
    assert graphs is None or graphs.made > 0


@pytest.mark.parametrize("implementation", [None, *gradients.IMPLEMENTATIONS])
@pytest.mark.parametrize("name", ["convnet", "convnet:norm=layer", "mlp"])
def test_class_gradients_of_rectangular_images(name, implementation, wide):
    if (name, implementation) == ("convnet:norm=layer", "grouped"):
        pytest.skip("it has no grouped gradients")
    network = networks.build(name, wide.shape, 3, generator=generator(0), dtype=torch.float64, **SMALL)
    batches = [wide.of_class(c)[:4] for c in range(3)]
    found = gradients.class_gradients(network, batches, implementation=implementation)
    weights = [p for _, p in networks.matched(network)]
    for c, x in enumerate(batches):
        loss = torch.nn.functional.cross_entropy(network(x), torch.full((4,), c))
        for ours, plain in zip(found, torch.autograd.grad(loss, weights), strict=True):
            assert torch.allclose(ours[c], plain.reshape(ours[c].shape), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 64, 32)])
def test_only_square_images_take_the_faster_forward_pass(shape):
    """Its feature maps are square. These images are large enough for it."""
    for sides, is_faster in ((shape, False), ((shape[0], 64, 64), True)):
        network = networks.build("convnet", sides, 3, generator=generator(0), width=32)
        assert (fast_forward(network, torch.zeros(1, *sides)) is not network) == is_faster


@pytest.mark.parametrize("augment", ["dsa:crop", "dsa:cutout", "dsa:scale", "dsa:rotate", "dsa:flip"])
def test_rectangular_images_are_augmented(augment, wide):
    recipe = tiny_recipe(ipc=2, augment=augment, inner_loops=1)
    S = gm.condense(wide, recipe, device="cpu", progress=False)
    assert S.images.isfinite().all() and S.shape == WIDE


def test_rectangular_images_from_start_to_end(wide):
    data = wide.to(dtype=torch.float32)
    S = gm.condense(data, tiny_recipe(ipc=2, how="d1 + d2", where="adaptive"), device="cpu", progress=False)
    for network in ("convnet", "mlp"):
        scores = gm.evaluate(S, data, network, 2, epochs=3, **SMALL, device="cpu", progress=False)
        assert scores.n == 2
    chosen = gm.coreset("herding", data, 2, space="network", epochs=1, device="cpu", **SMALL)
    assert chosen.shape == WIDE
    options = {"eps": [0.5], "n_starts": 2, "max_steps": 3, "device": "cpu", "progress": False}
    assert len(gm.reach(S, data=data, **options, **SMALL)) > 0


# ---- uneven classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["DC", "MDA"])
def test_classes_may_be_of_any_size(method):
    data = make_data((3, 60, 17), n_test=9)
    recipe = gm.Recipe.for_method(
        method, "made-up", 5, width=4, depth=2, outer_loops=2, inner_loops=2, zeta_theta=2, batch_real=32
    )
    assert recipe.init == "noise"
    S = gm.condense(data, recipe, device="cpu", progress=False)
    assert S.labels.bincount().tolist() == [5, 5, 5] and S.images.isfinite().all()
    scores = gm.evaluate(S, data, n_networks=2, epochs=3, width=4, depth=2, device="cpu", progress=False)
    assert scores.n == 2
    with refuses(ValueError, "ipc=5", "1 to 3", 'init="noise"'):
        gm.condense(data, tiny_recipe(ipc=5, init="real"), device="cpu", progress=False)
    with refuses(ValueError, "ipc=5", "1 to 3"):
        gm.coreset("random", data, 5)
    assert gm.coreset("random", data, 3).labels.bincount().tolist() == [3, 3, 3]


# ---- images added later ------------------------------------------------------------------------------------


def test_new_images_on_the_scale_of_a_set(tmp_path):
    first = load_data(f"imagefolder:{photos(tmp_path / 'first')}", size=8, progress=False)
    S = gm.coreset("random", first, 1)
    name = f"imagefolder:{photos(tmp_path / 'later', seed=1)}"
    own = load_data(name, size=8, progress=False)
    later = load_data(name, size=8, mean=S.mean, std=S.std, progress=False)
    assert own.mean != S.mean and (later.mean, later.std) == (S.mean, S.std)
    scores = gm.evaluate(S, later, n_networks=1, epochs=1, width=4, depth=2, device="cpu", progress=False)
    assert scores.n == 1
    rescaled = own.rescaled(S.mean, S.std)
    assert (rescaled.mean, rescaled.std, rescaled.origin) == (S.mean, S.std, own.origin)
    for part in ("train_images", "test_images"):
        assert (getattr(rescaled, part) - getattr(later, part)).abs().max() < 1e-6
    assert torch.equal(rescaled.train_labels, own.train_labels)


def test_rescaling_is_the_formula_of_its_docstring(wide):
    new = wide.rescaled(0.25, [0.125])
    expected = (wide.train_images * wide.std[0] + wide.mean[0] - 0.25) / 0.125
    assert torch.allclose(new.train_images, expected, rtol=1e-13, atol=1e-13)
    assert new.train_images.dtype == torch.float64
    assert wide.rescaled(wide.mean, wide.std).fingerprint == wide.fingerprint, "nothing is rounded again"
    assert (new.rescaled(wide.mean, wide.std).train_images - wide.train_images).abs().max() < 1e-12
    for mean, std, words in (
        ((0.5,) * 3, (0.2,) * 3, "1 finite number"),
        (120, 0.2, "mean=120"),
        (0.5, 0, "std=0"),
        ("a", 0.2, "mean='a'"),
    ):
        with refuses(ValueError, words):
            wide.rescaled(mean, std)
