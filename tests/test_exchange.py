"""Synthetic sets in the formats of others: out, and back in. Scale, order and classes are never guessed."""

import argparse
import json
import logging
import os
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_data
from messages import refuses
from PIL import Image
from test_sets import make_set
from torch.utils.data import DataLoader

import gmlib as gm
from gmlib.exchange import NOTE, README, class_folders, pixel_loss
from gmlib.files import write_atomically

FromArrays = gm.SyntheticSet.from_arrays
PIXELS = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(1))
LABELS = [1, 0, 2, 1, 0]
SCALE = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.5)}


def normalised(pixels, mean, std):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


def uneven(**changes):
    """A set of 1, 3 and 2 grey images. Their pixels need 8 bits and lie in [0, 1]."""
    levels = torch.randint(0, 256, (6, 1, 5, 7), generator=torch.Generator().manual_seed(2))
    return make_set(
        **{
            "images": normalised(levels / 255, (0.25,), (0.5,)),
            "labels": torch.tensor([0, 1, 1, 1, 2, 2]),
            "mean": (0.25,),
            "std": (0.5,),
            **changes,
        }
    )


def same(S, T):
    assert torch.equal(S.images, T.images) and S.images.dtype == T.images.dtype and torch.equal(S.labels, T.labels)
    assert (S.classes, tuple(S.mean), tuple(S.std), S.recipe) == (T.classes, tuple(T.mean), tuple(T.std), T.recipe)
    return True


def without(module, monkeypatch):
    """As if a package was not installed."""
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, module, raising=False)

    def find_spec(name, *_):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find_spec), *sys.meta_path])


# ---- numpy archives


@pytest.mark.parametrize("S", [make_set(), make_set(torch.float64), uneven()], ids=["colour", "float64", "uneven"])
def test_a_numpy_archive_comes_back_bit_for_bit(S, tmp_path):
    path = S.to_npz(tmp_path / "a" / "set.npz")
    assert same(gm.SyntheticSet.from_npz(path), S)
    with np.load(path) as found:  # without pickle
        assert {"images", "labels", "classes", "mean", "std"} < set(found.files) and found["images"].shape[
            1:
        ] == S.shape
    assert path.read_bytes() == S.to_npz(tmp_path / "again.npz").read_bytes()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"std": None}, "'std'"),
        ({"images": np.zeros((6, 3, 4, 5), int)}, "types"),
        ({"classes": np.array([{}], dtype=object)}, "allow_pickle"),
        ({"labels": np.zeros(6)}, "types"),
        ({"recipe": np.array("{")}, "damaged"),
    ],
)
def test_an_archive_of_another_kind_is_refused(changes, word, tmp_path):
    path = make_set().to_npz(tmp_path / "set.npz")
    with np.load(path) as found:
        content = {name: value for name, value in ({**found} | changes).items() if value is not None}
    np.savez(path, **content)
    with refuses(ValueError, "set.npz", word):
        gm.SyntheticSet.from_npz(path)


def test_no_archive_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    with refuses(FileNotFoundError, "set.npz"):
        gm.SyntheticSet.from_npz(path)
    whole = make_set().to_npz(path).read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (b"", b"hello", whole[:500], (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        with refuses(ValueError, "set.npz"):
            gm.SyntheticSet.from_npz(path)
    for name in ("set.txt", "set"):
        with refuses(ValueError, ".npz"):
            make_set().to_npz(tmp_path / name)
    assert {each.name for each in tmp_path.iterdir()} == {"set.npz", "one.npy"}


# ---- folders of images


def test_a_folder_of_pixels_of_8_bits_comes_back_bit_for_bit(tmp_path, caplog):
    S = uneven()
    caplog.set_level(logging.INFO)
    lost = S.to_folder(tmp_path / "deep" / "png")
    assert lost.clipped == 0 and lost.largest < 1e-6 and "no pixel" in str(lost) and "no pixel" in caplog.text
    files = sorted(p.relative_to(tmp_path / "deep" / "png").as_posix() for p in tmp_path.rglob("*.*"))
    assert [name for name in files if name.startswith("bee")] == ["bee/000.png", "bee/001.png", "bee/002.png"]
    assert README in files and NOTE in files and len(files) == 8
    assert same(gm.SyntheticSet.from_folder(tmp_path / "deep" / "png"), S)


def test_what_clipping_and_rounding_lose_is_measured_and_logged(tmp_path, caplog):
    S = make_set()
    lost = S.to_folder(tmp_path / "png")
    exact = S.pixels(clip=False).double()
    back = gm.SyntheticSet.from_folder(tmp_path / "png").pixels().double()
    change = (back - exact).abs()
    assert lost.largest == pytest.approx(change.max().item(), abs=1e-6) and lost.largest > 0.5
    assert lost.mean == pytest.approx(change.mean().item(), abs=1e-6)
    assert lost.clipped == S.outside > 0.1
    assert (back - S.pixels()).abs().max() <= 0.5001 / 255, "only rounding, besides clipping"
    assert caplog.records[-1].levelname == "WARNING" and str(lost) in caplog.text
    assert str(lost) in (tmp_path / "png" / README).read_text()


@pytest.mark.parametrize(
    ("classes", "numbered"),
    [
        (("ant", "bee", "müll"), False),
        (("bee", "ant", "müll"), True),  # sorted by name they would be in another order
        (tuple(map(str, range(11))), True),  # "10" comes before "2"
        (("a/b", "a:b"), True),  # the same name when made safe
        (("B", "a", "b"), True),  # the same on some file systems
        (("../../evil", "con", ""), True),
        (("x" * 300, "y" * 300), False),
        (("README.txt", "a"), True),  # the name of a file beside the folders
    ],
)
def test_sorted_folders_are_in_the_order_of_the_labels(classes, numbered, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    folders = class_folders(classes)
    assert folders == sorted(folders) and len({name.casefold() for name in folders}) == len(classes)
    assert all(re.match(f"0*{c}-", name) for c, name in enumerate(folders)) == numbered
    S = FromArrays(torch.rand(len(classes), 8, 8), range(len(classes)), classes, mean=0.5, std=0.5, normalised=False)
    S.to_folder(tmp_path / "png")
    assert sorted(p.name for p in (tmp_path / "png").iterdir() if p.is_dir()) == folders
    assert [p.name for p in tmp_path.iterdir()] == ["png"], "no path leaves the folder"
    assert [label for _, label in torchvision.datasets.ImageFolder(tmp_path / "png")] == S.labels.tolist()
    back = gm.SyntheticSet.from_folder(tmp_path / "png")
    assert back.classes == classes and (back.pixels() - S.pixels()).abs().max() < 0.51 / 255


def test_a_folder_that_is_in_use_is_refused(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("x")
    for path in (tmp_path / "used", tmp_path / "used" / "mine.txt"):
        with refuses(ValueError, str(path)):
            make_set().to_folder(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["used", "mine.txt"]
    (tmp_path / "empty").mkdir()
    make_set().to_folder(tmp_path / "empty")
    with refuses(ValueError, "not empty"):
        make_set().to_folder(tmp_path / "empty")


def test_a_path_through_a_new_folder_is_that_of_the_folder_around_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / README).write_text("mine")
    with refuses(ValueError, "is not empty"):
        uneven().to_folder("new/..")
    assert [path.name for path in tmp_path.iterdir()] == [README] and (tmp_path / README).read_text() == "mine"


def test_what_a_killed_export_left_is_no_hindrance(tmp_path):
    (tmp_path / "png" / f".{'0' * 16}.tmp" / "0").mkdir(parents=True)
    uneven().to_folder(tmp_path / "png")
    assert not list((tmp_path / "png").glob(".*"))


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failed_export_leaves_nothing(fault, existed, tmp_path, monkeypatch):
    path, moved = tmp_path / "png", []
    if existed:
        path.mkdir()
    rename = type(path).rename

    def fail(self, target):
        if len(moved) == 2:
            raise fault
        moved.append(target)
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fail)
    with pytest.raises(type(fault)) as error:
        make_set().to_folder(path)
    assert len(moved) == 2 and [p.name for p in tmp_path.rglob("*")] == ["png"] * existed
    assert isinstance(fault, KeyboardInterrupt) or str(path) in str(error.value)


def test_images_of_two_channels_have_no_picture(tmp_path):
    S = make_set(images=torch.zeros(3, 2, 4, 4), labels=torch.arange(3), mean=(0, 0), std=(1, 1))
    for call in (S.to_folder, lambda path: S.to_huggingface(), lambda path: S.show(path / "a.png")):
        with pytest.raises((ValueError, ModuleNotFoundError)):
            call(tmp_path)
    assert S._repr_html_() is None and not list(tmp_path.iterdir())
    assert same(gm.SyntheticSet.from_npz(S.to_npz(tmp_path / "set.npz")), S)


def a_folder(path, classes, shape=(8, 8), n=2, seed=0):
    """Random images of this shape as PNG files, as any other tool would write them."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (len(classes), n, *shape), dtype=np.uint8)
    for name, images in zip(classes, levels, strict=True):
        (path / name).mkdir(parents=True)
        for j, image in enumerate(images):
            Image.fromarray(image).save(path / name / f"image{j}.png")
    return torch.from_numpy(levels).flatten(0, 1)


def test_any_image_folder_is_normalised_by_the_data(tmp_path):
    data = make_data((4, 4, 4), dtype=torch.float32)
    levels = a_folder(tmp_path, data.classes)
    S = gm.SyntheticSet.from_folder(tmp_path, data)
    assert torch.equal(S.images, normalised(levels[:, None] / 255, data.mean, data.std))
    assert (S.classes, S.mean, S.std, S.counts) == (data.classes, data.mean, data.std, (2, 2, 2))
    assert gm.evaluate(S, data, n_networks=1, epochs=1, width=4, depth=2, progress=False).n == 1
    with refuses(ValueError, "mean="):
        gm.SyntheticSet.from_folder(tmp_path)
    with refuses(ValueError, "not both"):
        gm.SyntheticSet.from_folder(tmp_path, data, mean=0.5, std=0.5)
    with refuses(ValueError, "std"):
        gm.SyntheticSet.from_folder(tmp_path, mean=0.5)
    assert same(gm.SyntheticSet.from_folder(tmp_path, mean=data.mean, std=data.std), S)


def test_the_classes_of_a_folder_take_the_order_of_the_data(tmp_path):
    """A folder has the name of its class, or this name made safe, or a number in front."""
    names = ("zebra", "ant/bee", "cow")
    data = replace(make_data((4, 4, 4), dtype=torch.float32), classes=names)
    sets = []
    for i, folders in enumerate((class_folders(names, False), class_folders(names, True))):
        a_folder(tmp_path / str(i), folders)
        sets.append(gm.SyntheticSet.from_folder(tmp_path / str(i), data))
        assert sets[-1].classes == names
    assert same(*sets)
    assert not torch.equal(gm.SyntheticSet.from_folder(tmp_path / "0", mean=0.5, std=0.5).images, sets[0].images)
    sets[0].to_folder(tmp_path / "2")
    other = replace(data, classes=("cow", "zebra", "ant/bee"))
    turned = gm.SyntheticSet.from_folder(tmp_path / "2", other)
    assert torch.equal(turned.images, sets[0].images[[4, 5, 0, 1, 2, 3]]) and turned.classes == other.classes
    a_folder(tmp_path / "3", ("zebra", "cow"))
    for path in (tmp_path / "3", tmp_path / "2"):
        with refuses(ValueError, "dog", data.name):
            gm.SyntheticSet.from_folder(path, replace(data, classes=("zebra", "cow", "dog")))
    (tmp_path / "2" / "2-cow").rename(tmp_path / "2" / "2-dog")
    with refuses(ValueError, NOTE, "2-cow"):
        gm.SyntheticSet.from_folder(tmp_path / "2")


def test_grey_images_that_were_saved_in_colour_are_grey(tmp_path):
    """torchvision's save_image does so."""
    data = make_data((4, 4), dtype=torch.float32)
    grey = a_folder(tmp_path / "grey", data.classes)
    for file in (tmp_path / "grey").rglob("*.png"):
        Image.open(file).convert("RGB").save(file)
    S = gm.SyntheticSet.from_folder(tmp_path / "grey", data)
    assert torch.equal(S.images, normalised(grey[:, None] / 255, data.mean, data.std))
    a_folder(tmp_path / "colour", data.classes, (8, 8, 3))
    with refuses(ValueError, "colour"):
        gm.SyntheticSet.from_folder(tmp_path / "colour", data)
    colour = make_data((4, 4), (3, 8, 8), dtype=torch.float32)
    assert gm.SyntheticSet.from_folder(tmp_path / "grey", colour).shape == (3, 8, 8)


def test_images_of_another_size_are_refused_or_resized(tmp_path):
    data = make_data((4, 4), dtype=torch.float32)
    a_folder(tmp_path, data.classes, (10, 12))
    with refuses(ValueError, "(1, 10, 12)"):
        gm.SyntheticSet.from_folder(tmp_path, data)
    assert gm.SyntheticSet.from_folder(tmp_path, data, size=8).shape == data.shape


@pytest.mark.parametrize(
    "change",
    [{"format": "x"}, {"folders": ["a", "b"]}, {"folders": ["ant", "ant", "bee"]}, {"std": [0.0]}, {"mean": "x"}],
)
def test_a_damaged_note_is_refused(change, tmp_path):
    uneven().to_folder(tmp_path / "png")
    note = json.loads((tmp_path / "png" / NOTE).read_text())
    write_atomically(tmp_path / "png" / NOTE, json.dumps(note | change).encode())
    with pytest.raises(ValueError):
        gm.SyntheticSet.from_folder(tmp_path / "png")


# ---- arrays


def test_pixels_and_normalised_images_give_the_same_set():
    """In every layout. uint8 pixels give the bits of Data."""
    levels = (PIXELS * 255).round().byte()
    x = normalised(levels / 255, **SCALE)
    S = FromArrays(levels, LABELS, ["a", "b", "c"], **SCALE, normalised=False)
    order = [1, 4, 0, 3, 2]
    assert torch.equal(S.images, x[order]) and S.labels.tolist() == [0, 0, 1, 1, 2] and S.counts == (2, 2, 1)
    data = gm.Data.from_arrays("d", levels, LABELS, levels, LABELS, **SCALE)
    assert torch.equal(data.train_images, S.images)
    hwc = levels.permute(0, 2, 3, 1).numpy()
    names = [S.classes[c] for c in LABELS]
    for images, labels, is_normalised in (
        (hwc, LABELS, False),
        (hwc / 255, np.array(LABELS, np.uint8), False),
        (levels / 255, torch.tensor(LABELS), False),
        (x, np.array(names), True),
        (x.permute(0, 2, 3, 1).double().numpy(), np.array(names, dtype=object), True),
        (x.clone().requires_grad_(), names, True),
    ):
        T = FromArrays(images, labels, S.classes, **SCALE, normalised=is_normalised)
        assert T.images.dtype == torch.float32 and not T.images.requires_grad
        assert torch.equal(T.labels, S.labels) and (T.images - S.images).abs().max() < 1e-5
    assert FromArrays(x, names, **SCALE, normalised=True).classes == ("a", "b", "c")
    assert FromArrays(x, LABELS, **SCALE, normalised=True).classes == ("0", "1", "2")
    grey = FromArrays(x[:, 0].numpy(), LABELS, mean=0, std=1, normalised=True)
    assert torch.equal(grey.images[:, 0], x[order, 0])


def test_the_given_arrays_are_not_changed():
    for images, flag in ((PIXELS.numpy().copy(), False), (PIXELS.clone(), True)):
        before = images.copy() if isinstance(images, np.ndarray) else images.clone()
        S = FromArrays(images, sorted(LABELS), **SCALE, normalised=flag)
        S.images.zero_()
        assert (images == before).all()


def test_the_data_give_classes_order_and_scale():
    data = replace(make_data((4, 4, 4), dtype=torch.float32), classes=("b", "c", "a"))
    x = torch.randn(3, 1, 8, 8)
    S = FromArrays(x, ["a", "b", "c"], data=data, normalised=True)
    assert (
        S.classes == data.classes and torch.equal(S.images, x[[1, 2, 0]]) and (S.mean, S.std) == (data.mean, data.std)
    )
    T = FromArrays(x, [0, 1, 2], ["a", "b", "c"], data=data, normalised=True)
    assert same(S, T)
    other = FromArrays(x, [0, 1, 2], ["a", "b", "c"], mean=0.2, std=0.7, data=data, normalised=True)
    assert (other.mean, other.std) == (data.mean, data.std)
    torch.testing.assert_close(other.pixels(clip=False), x[[1, 2, 0]] * 0.7 + 0.2, rtol=0, atol=1e-5)
    with refuses(ValueError, "not both"):
        FromArrays(torch.rand(3, 8, 8), [0, 1, 2], mean=0.2, std=0.7, data=data, normalised=False)
    with refuses(ValueError, "(1, 4, 4)", "(1, 8, 8)"):
        FromArrays(torch.rand(3, 4, 4), [0, 1, 2], data=data, normalised=False)
    with refuses(ValueError, "'d'"):
        FromArrays(x, [0, 1, 2], ["a", "b", "d"], data=data, normalised=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": None}, ["std", "both"]),
        ({"mean": None, "std": None}, ["scale", "data="]),
        ({"normalised": None}, ["normalised=None", "True or False"]),
        ({"images": PIXELS * 255}, ["divide", "255"]),
        ({"images": PIXELS * 3 - 1}, ["normalised=True", "mean=0, std=1"]),
        ({"images": PIXELS.where(PIXELS < 0.9, torch.nan)}, ["NaN"]),
        ({"images": (PIXELS * 255).byte(), "normalised": True}, ["uint8", "normalised=False"]),
        ({"images": (PIXELS * 255).int()}, ["int32"]),
        ({"images": PIXELS.where(PIXELS < 0.9, torch.inf), "normalised": True}, ["NaN or infinite"]),
        ({"mean": (127, 120, 110)}, ["mean", "255"]),
        ({"std": (51.0, 60.0, 50.0)}, ["std", "255"]),
        ({"std": 0}, ["std=0"]),
        ({"mean": (0.5, 0.5)}, ["3 numbers"]),
        ({"mean": "0.5"}, ["3 numbers"]),
        ({"labels": LABELS[:4]}, ["5"]),
        ({"labels": torch.eye(5)}, ["(5, 5)", "argmax"]),
        ({"labels": [0, 1, 1, 3, 3]}, ["'2'", "no image"]),
        ({"labels": [0, 1, 1, 10**9, 3]}, ["1000000000"]),
        ({"labels": [0, 1, 2, -1, 2]}, ["-1"]),
        ({"labels": ["a", "b", "b", "c", "x"], "classes": ["a", "b", "c"]}, ["'x'", "a, b, c"]),
        ({"classes": ["a", "b"]}, ["label 2"]),
        ({"classes": ["a", "b", "c", "d"]}, ["'d'", "no image"]),
        ({"classes": ["a", "b", "a"]}, ["'a'"]),
        ({"classes": "abc"}, ["classes"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, words):
    given = {"images": PIXELS, "labels": LABELS, **SCALE, "normalised": False}
    with refuses(ValueError, *words):
        FromArrays(**given | changes)


def test_a_scale_that_is_probably_wrong_is_logged(caplog):
    given = {"labels": LABELS, **SCALE, "normalised": True}
    FromArrays(PIXELS, **given)
    assert "normalised=False" in caplog.text
    caplog.clear()
    FromArrays(PIXELS * 255, **given)
    assert "check mean and std" in caplog.text
    caplog.clear()
    FromArrays(PIXELS, LABELS, mean=0, std=1, normalised=True)
    FromArrays(normalised(PIXELS * 3 - 1, **SCALE), **given)
    assert not caplog.text


# ---- files of other projects


@pytest.fixture
def mnist():
    """Data that is called MNIST, of its scale, with ten classes."""
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 10
    return gm.Data.from_arrays("MNIST", x, y, x, y, mean=[0.1307], std=[0.3081])


def test_the_files_of_the_baselines_scripts(mnist, tmp_path):
    """They hold a pair for each experiment, and accuracies as numbers of numpy."""
    sets = [torch.randn(10, 1, 8, 8) for _ in range(3)]
    y = torch.arange(10)
    content = {"data": [[x, y] for x in sets], "accs_all_exps": {"ConvNet": [np.float64(0.9), np.float32(0.8)]}}
    torch.save(content, tmp_path / "res_DC_MNIST_ConvNet_1ipc.pt")
    for which, x in ((-1, sets[2]), (0, sets[0]), (1, sets[1])):
        S = gm.SyntheticSet.from_pt(tmp_path / "res_DC_MNIST_ConvNet_1ipc.pt", mnist, which=which)
        assert torch.equal(S.images, x) and torch.equal(S.labels, y) and S.classes == mnist.classes
    for which in (3, -4, 1.5):
        with refuses(ValueError, f"which={which}"):
            gm.SyntheticSet.from_pt(tmp_path / "res_DC_MNIST_ConvNet_1ipc.pt", mnist, which=which)


def test_images_and_labels_in_two_files_or_as_a_pair(mnist, tmp_path):
    x, y = torch.randn(20, 1, 8, 8, requires_grad=True), torch.arange(20) % 10
    torch.save(x, tmp_path / "images_best.pt")
    torch.save(y, tmp_path / "labels_best.pt")
    S = gm.SyntheticSet.from_pt(tmp_path / "images_best.pt", mnist, tmp_path / "labels_best.pt")
    assert torch.equal(S.images, x[y.argsort(stable=True)]) and S.counts == (2,) * 10
    for i, content in enumerate(((x, y), [x, y], {"images": x, "labels": y.double()})):
        torch.save(content, tmp_path / f"{i}.pt")
        assert same(gm.SyntheticSet.from_pt(tmp_path / f"{i}.pt", mnist), S)
    with refuses(ValueError, "labels_path="):
        gm.SyntheticSet.from_pt(tmp_path / "images_best.pt", mnist)


def test_a_pair_may_hold_a_list_of_labels_and_is_one_set(mnist, tmp_path):
    x = torch.randn(mnist.n_classes, *mnist.shape)
    torch.save((x, list(range(mnist.n_classes))), tmp_path / "pair.pt")
    scale = {"mean": mnist.mean, "std": mnist.std}
    assert torch.equal(gm.SyntheticSet.from_pt(tmp_path / "pair.pt", mnist, **scale).images, x)
    with refuses(ValueError, "which=7", "one set"):
        gm.SyntheticSet.from_pt(tmp_path / "pair.pt", mnist, which=7, **scale)
    blob = bytearray((tmp_path / "pair.pt").read_bytes())
    at = blob.find(x.numpy().tobytes()[:16])
    blob[at] ^= 1
    (tmp_path / "pair.pt").write_bytes(blob)
    with refuses(ValueError, "is not opened"):
        gm.SyntheticSet.from_pt(tmp_path / "pair.pt", mnist, **scale)


def test_the_scale_of_a_file_is_known_or_asked_for(mnist, tmp_path):
    """The scripts normalise CIFAR-10 by another std than gmlib."""
    x, y = torch.randn(10, 3, 8, 8), torch.arange(10)
    theirs = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
    ours = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    pixels = torch.rand(10, 3, 8, 8)
    cifar = gm.Data.from_arrays("CIFAR10", pixels, y, pixels, y, **ours)
    torch.save({"data": [[x, y]]}, tmp_path / "script.pt")
    torch.save((x, y), tmp_path / "pair.pt")
    S = gm.SyntheticSet.from_pt(tmp_path / "script.pt", cifar)
    T = FromArrays(x, y, cifar.classes, **theirs, normalised=True)
    torch.testing.assert_close(S.pixels(clip=False), T.pixels(clip=False), rtol=0, atol=1e-5)
    assert S.std == ours["std"] and not torch.allclose(S.images, x, atol=0.1)
    assert gm.evaluate(S, cifar, n_networks=1, epochs=1, width=4, depth=2, progress=False).n == 1
    assert torch.equal(gm.SyntheticSet.from_pt(tmp_path / "pair.pt", cifar, **ours).images, x)
    for path, data in (("pair.pt", cifar), ("script.pt", replace(cifar, name="CIFAR100"))):
        with refuses(ValueError, path, "mean="):
            gm.SyntheticSet.from_pt(tmp_path / path, data)
    with refuses(ValueError, "(3, 8, 8)", "(1, 8, 8)"):
        gm.SyntheticSet.from_pt(tmp_path / "script.pt", mnist)


def test_classes_in_another_order_are_asked_for(mnist, tmp_path):
    torch.save((torch.randn(10, 1, 8, 8), torch.arange(10)), tmp_path / "set.pt")
    tiny = replace(mnist, name="TinyImageNet", classes=tuple("jihgfedcba"))
    with refuses(ValueError, "classes="):
        gm.SyntheticSet.from_pt(tmp_path / "set.pt", tiny, mean=tiny.mean, std=tiny.std)
    S = gm.SyntheticSet.from_pt(tmp_path / "set.pt", tiny, mean=0.1307, std=0.3081, classes=sorted(tiny.classes))
    assert S.classes == tiny.classes and torch.equal(S.images.flip(0), torch.load(tmp_path / "set.pt")[0])


def test_nothing_is_unpickled(mnist, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    x, y, path = torch.randn(10, 1, 8, 8), torch.arange(10), tmp_path / "set.pt"
    for extra, word in (
        (Trap(), "mkdir"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
        (mnist, "gmlib.data.Data"),
    ):
        torch.save({"data": [[x, y]], "args": extra}, path)
        with refuses(ValueError, "set.pt", word, "unpickling"):
            gm.SyntheticSet.from_pt(path, mnist)
    assert not (tmp_path / "opened").exists()


def test_files_without_a_set_are_refused(mnist, tmp_path):
    x, y, path = torch.randn(10, 1, 8, 8), torch.arange(10), tmp_path / "set.pt"
    with refuses(FileNotFoundError, "set.pt"):
        gm.SyntheticSet.from_pt(path, mnist)
    for content in (
        {},
        [],
        3,
        {"data": []},
        {"data": [[x]]},
        (y, x),
        (x, [0] * 10),
        (x.byte(), y),
        (x, torch.eye(10)),
    ):
        torch.save(content, path)
        with refuses(ValueError):
            gm.SyntheticSet.from_pt(path, mnist)
    for blob in (b"", b"hello"):
        path.write_bytes(blob)
        with refuses(ValueError, "set.pt"):
            gm.SyntheticSet.from_pt(path, mnist)
    with refuses(ValueError, "Data"):
        gm.SyntheticSet.from_pt(path, None)


# ---- Hugging Face


def test_a_data_set_of_hugging_face(monkeypatch):
    def from_dict(columns, features):
        return columns, features

    fake = SimpleNamespace(
        Dataset=SimpleNamespace(from_dict=from_dict),
        Features=dict,
        Image=lambda: "image",
        ClassLabel=lambda names: names,
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    S = uneven()
    columns, features = S.to_huggingface()
    assert features == {"image": "image", "label": list(S.classes)} and columns["label"] == S.labels.tolist()
    found = torch.from_numpy(np.stack([np.asarray(image) for image in columns["image"]]))
    assert torch.equal(found, (S.pixels()[:, 0] * 255).round().byte())


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    without("datasets", monkeypatch)
    with refuses(ModuleNotFoundError, "pip install datasets"):
        make_set().to_huggingface()
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())  # a folder of this name, say
    with refuses(ModuleNotFoundError, "pip install datasets"):
        make_set().to_huggingface()
    without("PIL", monkeypatch)
    (tmp_path / "ant").mkdir()
    with refuses(ModuleNotFoundError, "gmlib[data]"):
        gm.SyntheticSet.from_folder(tmp_path, mean=0.5, std=0.5)
    with refuses(ModuleNotFoundError, "gmlib[data]"):
        make_set().to_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert same(gm.SyntheticSet.from_npz(make_set().to_npz(tmp_path / "a.npz")), make_set()), "this needs no extra"


# ---- a loop of one's own on an exported set


def test_a_plain_loop_with_the_papers_augmentation_on_an_exported_folder(tmp_path):
    """As the README.txt of the folder says, with torchvision alone."""
    torchvision = pytest.importorskip("torchvision")
    classes = ("zero", "one")
    pixels = torch.zeros(4, 1, 12, 12)
    pixels[:2, :, 3:9, 3:9] = 1
    S = FromArrays(pixels, [0, 0, 1, 1], classes, mean=0.1307, std=0.3081, normalised=False)
    S.to_folder(tmp_path / "png")
    t = torchvision.transforms
    line = next(x for x in (tmp_path / "png" / README).read_text().splitlines() if x.startswith("S = ImageFolder"))
    names = {name: getattr(t, name) for name in ("Compose", "Grayscale", "Normalize", "ToTensor")}
    exec(line, names := names | {"ImageFolder": torchvision.datasets.ImageFolder, "PATH": tmp_path / "png"})
    found = [torch.stack([x for x, _ in names["S"]]), torch.tensor([y for _, y in names["S"]])]
    assert torch.equal(found[0], S.images) and torch.equal(found[1], S.labels)

    torch.manual_seed(0)
    vary = gm.augment.paper_transform("MNIST")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(10):
        for x, y in DataLoader(names["S"], batch_size=4, shuffle=True):
            optimiser.zero_grad()
            F.cross_entropy(network(vary(x)), y).backward()
            optimiser.step()
    assert (network(S.images).argmax(1) == S.labels).all()


def test_the_loss_is_what_the_files_lose():
    assert pixel_loss(uneven()).largest < 1e-6
    S = make_set(images=torch.full((6, 3, 4, 5), 100.0))
    assert pixel_loss(S).clipped == 1 and pixel_loss(S).largest == pytest.approx(0.1 + 50 - 1, rel=1e-5)
