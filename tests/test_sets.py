"""Synthetic sets: their files, the checks on them, and files that are written completely or not at all."""

import dataclasses
import errno
import json
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import make_data
from messages import refuses
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import gmlib as gm
from gmlib.data import Data
from gmlib.files import write_atomically, write_tensors
from gmlib.sets import SyntheticSet, check_pair


def make_set(dtype=torch.float32, ipc=2, shape=(3, 4, 5), **changes):
    given = {
        "images": torch.randn(3 * ipc, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype),
        "labels": torch.arange(3).repeat_interleave(ipc),
        "classes": ("ant", "bee", "müll"),
        "mean": (0.1, 0.2, 1 / 3),
        "std": (0.5, 0.25, 0.1),
        "recipe": {"method": "MDA", "ipc": ipc, "lam": None, "lr": 0.1, "list": [1, 2]},
    }
    return SyntheticSet(**given | changes)


# ---- save and load -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_comes_back_bit_for_bit(dtype, tmp_path):
    S = make_set(dtype, history=[{"loss": 1.0}], snapshots={0: torch.zeros(1)})
    S.save(tmp_path / "set.safetensors")
    back = SyntheticSet.load(tmp_path / "set.safetensors")
    assert back.images.dtype == dtype and torch.equal(back.images, S.images) and torch.equal(back.labels, S.labels)
    assert (back.classes, back.mean, back.std, back.recipe) == (S.classes, S.mean, S.std, S.recipe)
    assert back.history == [] and back.snapshots == {}, "these are not part of the file"
    assert (back.ipc, back.n_classes, back.shape) == (2, 3, (3, 4, 5))


def test_the_fingerprint_is_that_of_images_and_labels(tmp_path):
    S = make_set()
    S.save(tmp_path / "set.safetensors")
    assert SyntheticSet.load(tmp_path / "set.safetensors").fingerprint == S.fingerprint
    assert dataclasses.replace(S, recipe={}, mean=(0.5, 0.5, 0.5)).fingerprint == S.fingerprint
    other = S.images.clone()
    other[-1, -1, -1, -1] += 1e-6
    others = [{"images": other}, {"classes": S.classes * 2, "labels": torch.arange(len(S.images))}]
    assert len({S.fingerprint, *(dataclasses.replace(S, **change).fingerprint for change in others)}) == 3


def test_a_set_in_float16_comes_back_as_float32(tmp_path):
    S = make_set()
    S.save(tmp_path / "half.safetensors", dtype=torch.float16)
    S.save(tmp_path / "full.safetensors")
    back = SyntheticSet.load(tmp_path / "half.safetensors")
    assert back.images.dtype == torch.float32 and torch.equal(back.images, S.images.half().float())
    saved = (tmp_path / "full.safetensors").stat().st_size - (tmp_path / "half.safetensors").stat().st_size
    assert saved >= 2 * S.images.numel() - 8


@pytest.mark.parametrize(
    ("changes", "dtype", "words"),
    [
        ({"images": torch.full((6, 3, 4, 5), 1e6)}, torch.float16, ["range", "float16"]),
        ({}, torch.bfloat16, ["bfloat16", "torch.float16, torch.float32, torch.float64"]),
        ({"recipe": {"seed": torch.zeros(1)}}, None, ["JSON"]),
    ],
)
def test_a_set_that_cannot_be_stored_leaves_no_file(changes, dtype, words, tmp_path):
    with refuses(ValueError, *words):
        make_set(**changes).save(tmp_path / "set.safetensors", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_the_file_is_plain_safetensors_and_always_the_same(tmp_path):
    contents = set()
    for i in range(8):  # safetensors alone would shuffle the metadata
        make_set().save(tmp_path / f"{i}.safetensors")
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("images"), make_set().images)
    assert metadata["format"] == "gmlib-set-2" and len(metadata["sha256"]) == 64
    assert json.loads(metadata["recipe"])["method"] == "MDA" and json.loads(metadata["classes"])[2] == "müll"


def test_images_with_grad_or_strides_can_be_saved(tmp_path):
    images = make_set().images.transpose(2, 3).requires_grad_()
    make_set(images=images).save(tmp_path / "set.safetensors")
    back = SyntheticSet.load(tmp_path / "set.safetensors")
    assert torch.equal(back.images, images) and not back.images.requires_grad


def test_a_truncated_file_is_refused_at_every_length(tmp_path):
    path = tmp_path / "set.safetensors"
    make_set().save(path)
    blob = path.read_bytes()
    lengths = [*range(0, 40), *range(40, len(blob), 97), len(blob) - 1]
    for damaged in (*(blob[:length] for length in lengths), blob + b"more"):
        path.write_bytes(damaged)
        with refuses(ValueError, str(path)):
            SyntheticSet.load(path)
    path.write_bytes(blob)
    SyntheticSet.load(path)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "set.pt", tmp_path):
        with refuses(FileNotFoundError, str(path)):
            SyntheticSet.load(path)


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    path = tmp_path / "set.pt"
    torch.save({"images": make_set().images}, path)
    for blob in (pickle.dumps(Trap()), b"hello, this is not a set at all", path.read_bytes()):
        path.write_bytes(blob)
        with refuses(ValueError, "set.pt"):
            SyntheticSet.load(path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("tensors", "metadata", "word"),
    [
        ({}, None, "format is None"),
        ({}, {"format": "gmlib-set-1"}, "'gmlib-set-1'"),
        ({}, {"recipe": None}, "recipe"),
        ({}, {"classes": "[broken"}, "Expecting value"),
        ({}, {"classes": "[]"}, "classes"),
        ({}, {"classes": "[1, 2]"}, "str"),
        ({}, {"mean": '"x"'}, "array"),
        ({}, {"mean": "[NaN]"}, "mean=nan"),
        ({}, {"std": "[0.0]"}, "std=0.0"),
        ({}, {"std": "[-0.5]"}, "std=-0.5"),
        ({}, {"std": "[true]"}, "bool"),
        ({}, {"recipe": "3"}, "object"),
        ({}, {"std": "[1, 2]"}, "1 numbers"),
        ({"labels": torch.tensor([0, 2])}, {}, "label 2"),
        ({"images": torch.full((2, 1, 3, 3), float("nan"))}, {}, "NaN"),
        ({"images": torch.zeros(2, 1, 3, 3, dtype=torch.int8)}, {}, "floats"),
        ({"images": None}, {}, "images"),
    ],
)
def test_files_that_hold_no_set_are_refused(tensors, metadata, word, tmp_path):
    """Their digests are right."""
    whole = {"images": torch.zeros(2, 1, 3, 3), "labels": torch.tensor([0, 1])} | tensors
    valid = {"format": "gmlib-set-2", "classes": '["a", "b"]', "mean": "[0.5]", "std": "[0.5]", "recipe": "{}"}
    metadata = {"a": "b"} if metadata is None else {k: v for k, v in (valid | metadata).items() if v is not None}
    write_tensors(tmp_path / "set.safetensors", {k: v for k, v in whole.items() if v is not None}, metadata)
    with refuses(ValueError, "set.safetensors is damaged", word, "delete it"):
        SyntheticSet.load(tmp_path / "set.safetensors")


def test_the_scale_of_a_set_is_plain_numbers(tmp_path):
    S = SyntheticSet(torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), ("a", "b"), (np.float32(0.25),), [np.float64(2)])
    assert S.mean == (0.25,) and S.std == (2.0,) and type(S.mean[0]) is float
    S.save(tmp_path / "set.safetensors")
    assert SyntheticSet.load(tmp_path / "set.safetensors").std == (2.0,)


def test_a_set_without_a_digest_is_refused(tmp_path):
    metadata = {"format": "gmlib-set-2", "classes": '["a"]', "mean": "[0.5]", "std": "[0.5]", "recipe": "{}"}
    tensors = {"images": torch.zeros(1, 1, 3, 3), "labels": torch.tensor([0])}
    save_file(tensors, tmp_path / "set.safetensors", metadata)
    with refuses(ValueError, "set.safetensors is damaged"):
        SyntheticSet.load(tmp_path / "set.safetensors")


@pytest.mark.parametrize("name", ["x.pt", "set.npz", "set.json"])
def test_a_name_of_another_kind_of_file_is_refused(name, tmp_path):
    with refuses(ValueError, name, ".safetensors"):
        make_set().save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    make_set().save(tmp_path / "set")
    assert SyntheticSet.load(tmp_path / "set").ipc == 2


def test_the_home_folder_may_be_spelled_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_set().save("~/set.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]
    assert SyntheticSet.load("~/set.safetensors").ipc == 2


@pytest.mark.parametrize("path", [None, 3, "a\0b"])
def test_what_is_no_path_is_named(path):
    for call in (make_set().save, SyntheticSet.load):
        with refuses(ValueError, "path", repr(path)):
            call(path)


# ---- the set itself ----------------------------------------------------------------------------------------


def test_pixels_are_clipped_and_the_dataset_is_normalised():
    S = make_set()
    pixels = S.pixels()
    for channel, (mean, std) in enumerate(zip(S.mean, S.std, strict=True)):
        expected = np.clip(S.images[:, channel].numpy() * std + mean, 0, 1)
        np.testing.assert_allclose(pixels[:, channel], expected, atol=1e-6)
    assert pixels.min() == 0 and pixels.max() == 1, "some pixels were clipped"
    assert S.images.min() < -1, "but not in S"
    images, labels = next(iter(DataLoader(S.to_dataset(), batch_size=6)))
    assert torch.equal(images, S.images) and torch.equal(labels, S.labels)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": torch.zeros(6, 20)}, "(6, 20)"),
        ({"images": torch.zeros(6, 3, 4, 5, dtype=torch.int64)}, "floats"),
        ({"images": torch.zeros(0, 3, 4, 5), "labels": torch.zeros(0, dtype=torch.int64)}, "floats"),
        ({"images": torch.full((6, 3, 4, 5), float("nan"))}, "NaN or infinite"),
        ({"images": torch.full((6, 3, 4, 5), float("-inf"))}, "NaN or infinite"),
        ({"mean": (0.5,)}, "3 numbers"),
        ({"mean": None}, "3 numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean=nan"),
        ({"std": (0.5, 0.5, 0.0)}, "std=0"),
        ({"std": (0.5, 0.5, -1.0)}, "std=-1"),
        ({"std": (0.5, 0.5, "x")}, "std='x'"),
        ({"classes": ()}, "classes"),
        ({"classes": None}, "classes"),
        ({"classes": "abc"}, "classes"),
        ({"classes": (1, 2, 3)}, "classes"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, "label 3"),
        ({"labels": torch.tensor([-1, 0, 1, 1, 2, 2])}, "label -1"),
        ({"labels": torch.tensor([0, 1, 2, 0, 1, 2])}, "sorted"),
        ({"labels": torch.tensor([0, 0, 0, 2, 2, 2])}, "at least one"),
        ({"labels": torch.tensor([0, 0, 0, 1, 1, 1])}, "at least one"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2])}, "one for each"),
        ({"labels": torch.tensor([[0, 0, 1, 1, 2, 2]])}, "one for each"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)}, "int64"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(changes, word):
    with refuses(ValueError, word):
        make_set(**changes)


def test_classes_may_have_different_numbers_of_images(tmp_path):
    S = make_set(labels=torch.tensor([0, 0, 0, 1, 2, 2]))
    assert (S.counts, S.ipc, make_set().counts, make_set().ipc) == ((3, 1, 2), 3, (2, 2, 2), 2)
    S.save(tmp_path / "set.safetensors")
    back = SyntheticSet.load(tmp_path / "set.safetensors")
    assert torch.equal(back.labels, S.labels) and back.fingerprint == S.fingerprint
    data = make_data((4, 4), dtype=torch.float32)
    S = SyntheticSet(data.train_images[:7], data.train_labels[:7], data.classes, data.mean, data.std)
    assert gm.evaluate(S, data, n_networks=1, epochs=1, width=4, depth=2, progress=False).n == 1


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ([-0.46, 0.5, 2.32], "pixels -0.46 to 2.32, 67 % outside [0, 1]"),
        ([0.0, 0.5, 1.0], "pixels 0.00 to 1.00, none outside [0, 1]"),
        ([-0.001, 0.5, 1.001], "pixels 0.00 to 1.00, none outside [0, 1]"),
        ([0.5] * 299 + [1.1], "pixels 0.50 to 1.10, less than 1 % outside [0, 1]"),
        ([1.1] * 299 + [0.5], "pixels 0.50 to 1.10, more than 99 % outside [0, 1]"),
    ],
)
def test_the_repr_says_sizes_and_range(pixels, words):
    images = (torch.tensor(pixels)[:, None, None, None] - 0.25) / 0.5
    n = len(pixels) - 1
    S = SyntheticSet(images, torch.tensor([0] * n + [1]), ("a", "b"), (0.25,), (0.5,))
    assert repr(S) == f"SyntheticSet({n + 1} images of (1, 1, 1), 1 to {n} for each of 2 classes, {words})"
    assert " 1 for each of 2 classes" in repr(SyntheticSet(images[:2], torch.arange(2), ("a", "b"), (0.25,), (0.5,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_is_rescaled_to_other_numbers(dtype):
    S = make_set(dtype, history=[{"loss": 1.0}], snapshots={0: torch.zeros(6, 3, 4, 5, dtype=dtype)})
    T = S.rescaled((0.5, 0.25, 0), 0.25)
    assert (T.mean, T.std) == ((0.5, 0.25, 0), (0.25,) * 3) and T.images.dtype == dtype
    assert (T.recipe, T.history, T.classes) == (S.recipe, S.history, S.classes)
    torch.testing.assert_close(T.pixels(clip=False), S.pixels(clip=False), rtol=0, atol=1e-6)
    assert T.snapshots[0][0, 0, 0, 0].item() == pytest.approx((0.1 - 0.5) / 0.25)
    assert torch.equal(S.rescaled(S.mean, list(S.std)).images, S.images), "equal numbers change no bit"
    for changes, word in (({"mean": 127}, "255"), ({"std": 0}, "std=0"), ({"mean": (0, 0)}, "3 numbers")):
        with refuses(ValueError, word):
            S.rescaled(**{"mean": 0, "std": 1} | changes)


def test_the_share_outside_and_the_pixels_there():
    S = make_set()
    exact = S.images * torch.tensor(S.std).view(-1, 1, 1) + torch.tensor(S.mean).view(-1, 1, 1)
    assert torch.equal(S.pixels(clip=False), exact) and torch.equal(S.pixels(), exact.clamp(0, 1))
    assert S.outside == pytest.approx(((exact < -1 / 510) | (exact > 1 + 1 / 510)).float().mean().item())


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("ant", "cow", "müll"), ["the class 'bee' where", "the class 'cow'"]),
        (("ant", "bee"), ["the class 'müll', which"]),
        (("ant", "bee", "müll", "cow"), ["lacks the class 'cow' of"]),
        (("bee", "ant", "müll"), ["another order"]),
        (tuple("abcdefgh"), ["where d has the classes 'a', 'b', 'c', 'd', 'e' and 3 more"]),
    ],
)
def test_a_set_of_other_classes_names_those_that_differ(classes, words):
    y = torch.arange(len(classes))
    images = torch.rand(len(y), 3, 4, 5, generator=torch.Generator().manual_seed(0))
    data = Data.from_arrays("d", images, y, images, y, classes=classes)
    with refuses(ValueError, *words):
        check_pair(make_set(), data)


# ---- write_atomically --------------------------------------------------------------------------------------


def test_write_atomically_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"one")
    write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["file"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode, "as readable as any other file"


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_only(step, fault, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise fault

    monkeypatch.setattr(step, fail)
    with pytest.raises(type(fault)) as error:
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
    if isinstance(fault, OSError):
        assert error.value.errno == errno.ENOSPC
        assert all(part in str(error.value) for part in (str(path), "No space left on device", "free some space"))


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError, match="cannot write") as error:
        make_set().save(tmp_path / "file" / "set.safetensors")
    assert "set.safetensors" in str(error.value) and "File exists" in str(error.value)
    with pytest.raises(IsADirectoryError, match="cannot write"):
        write_atomically(tmp_path, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"):
        write_atomically(tmp_path / "file", b"x")
