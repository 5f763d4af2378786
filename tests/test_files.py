"""Stored files: written completely or not at all, refused when a bit differs, and named safely."""

import json
import os
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from messages import refuses

from gmlib import files
from gmlib.files import as_path, read_json, read_tensors, slug, write_atomically, write_json, write_tensors

LEFT = "0123456789abcdef"
CONTENT = {"a": [1, 2.5, None, True], "müll": {"x": "1/3"}, "n": 1 / 3}


def flipped(blob):
    """The bytes with one bit flipped, for each byte."""
    for i in range(len(blob)):
        yield blob[:i] + bytes([blob[i] ^ 1 << i % 8]) + blob[i + 1 :]


# ---- what is read


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    x = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x", {"x": x, "part": x[0], "turned": x.T}, {"format": "a-1"})
    tensors, _ = read_tensors(tmp_path / "x", "a-1", "run again")
    assert torch.equal(tensors["x"], x) and torch.equal(tensors["part"], x[0]) and torch.equal(tensors["turned"], x.T)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("checkpoint.safetensors", "is a gmlib checkpoint, and no gmlib set"),
        ("model.safetensors", "is not from gmlib, and no gmlib set"),
        ("images.npz", "is no safetensors file, and no gmlib set"),
        ("run.json", "is no safetensors file, and no gmlib set"),
    ],
)
def test_a_good_file_of_another_kind_is_no_damaged_one(name, words, tmp_path):
    path, x = tmp_path / name, torch.zeros(2)
    write_tensors(tmp_path / "checkpoint.safetensors", {"x": x}, {"format": "gmlib-checkpoint-4"})
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save({"x": x}))
    np.savez(tmp_path / "images.npz", x=x.numpy())
    write_json(tmp_path / "run.json", CONTENT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words) as error:
        read_tensors(path, "gmlib-set-2", "run again")
    assert "name another file" in str(error.value) and "damaged" not in str(error.value)
    assert path.read_bytes() == before


def test_a_flipped_bit_of_a_json_file_is_found(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, CONTENT)
    assert read_json(path) == CONTENT
    refused = 0
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            assert read_json(path) == CONTENT, "only a space became another one"
        except ValueError as error:
            assert str(path) in str(error) and "is damaged" in str(error) and "delete it" in str(error)
            refused += 1
    assert refused > 0.7 * len(damaged)


def test_a_flipped_bit_of_a_tensor_file_is_found(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = {"x": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "none": torch.zeros(0, 2)}
    digest = write_tensors(path, tensors, {"format": "a-1", "b": "y"})
    read, metadata = read_tensors(path, "a-1", "try again")
    assert metadata == {"format": "a-1", "b": "y", "sha256": digest}
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], x) and read[name].dtype == x.dtype for name, x in tensors.items())
    blob = path.read_bytes()
    for damaged in (*flipped(blob), *(blob[:n] for n in range(len(blob))), blob + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged .*delete it and try again"):
            read_tensors(path, "a-1", "try again")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "Expecting value"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ("{}", "no digest"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999, "sha256": "0"}', "range"),
        ('{"a": ' + "[" * 10**5, "deeply"),
        ('{"sha256": 3}', "changed"),
        (b"\xff", "decode"),
    ],
)
def test_what_is_no_stored_json_is_refused_in_one_sentence(text, word, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refuses(ValueError, "file.json is damaged", word, "delete it"):
        read_json(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    write_json(tmp_path / "file.json", CONTENT)
    monkeypatch.setattr(files, "MOST_JSON", 10)
    with refuses(ValueError, "10 bytes"):
        read_json(tmp_path / "file.json")


def test_json_with_other_spaces_or_order_is_the_same(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"b": 1, "a": (1, 2), 10: 3, 2: 4})
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert read_json(path) == {"a": [1, 2], "b": 1, "10": 3, "2": 4}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.zeros(1), {1, 2}, b"x"])
def test_what_json_lacks_is_not_written(value, tmp_path):
    with refuses(ValueError, "file.json", "plain JSON"):
        write_json(tmp_path / "file.json", {"a": [value]})
    assert not list(tmp_path.iterdir())


# ---- what is written


def test_what_a_killed_writer_left_goes_with_the_next_write_of_its_target(tmp_path):
    mine, others = tmp_path / f".file.{LEFT}.tmp", tmp_path / f".file.json.{LEFT}.tmp"
    for path in (mine, others):
        path.write_bytes(b"half")
    write_atomically(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", others.name}
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_writers_at_once_do_not_disturb_each_other(tmp_path):
    failed = []

    def work(number):
        try:
            for _ in range(20):
                write_atomically(tmp_path / "file", bytes([number]) * 1000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and [path.name for path in tmp_path.iterdir()] == ["file"]
    assert len(set((tmp_path / "file").read_bytes())) == 1


def test_a_temporary_file_names_its_target_and_is_written_again_if_it_was_taken(tmp_path, monkeypatch):
    seen = []

    def replace(source, target, real=os.replace):
        seen.append(os.path.basename(source))
        if len(seen) == 1:
            os.unlink(source)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x" and len(set(seen)) == 2
    assert all(name.startswith(".file.") and name.endswith(".tmp") for name in seen)


def test_a_long_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


# ---- names and paths


@pytest.mark.parametrize("name", ["", ".", "..", "...", ".hidden", "end.", "CON", "nul.txt", "x" * 275, "ü" * 200])
def test_a_name_that_no_folder_can_have_gets_a_hash(name):
    found = slug(name)
    assert found != slug(name + "x") and found == slug(name)
    assert found.strip(".") == found and 0 < len(found.encode()) < 120 and len(os.path.split(found)[0]) == 0


def test_long_names_that_begin_alike_differ():
    assert slug("x" * 274 + "a") != slug("x" * 274 + "b")


@pytest.mark.parametrize("name", ["MNIST", "multi,d1+100_d4,fixed", "MD@lenet", "lr_images=0.01"])
def test_other_names_stay_as_they_are(name):
    assert slug(name) == name


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert as_path("~/a") == tmp_path / "a" and as_path(tmp_path / "~") == tmp_path / "~"


def test_what_is_not_ours_stays(tmp_path):
    mine = tmp_path / ".mine.tmp"
    mine.touch()
    with pytest.raises(OSError, match="cannot write"):
        files.write_atomically(tmp_path, b"x")
    files.remove_leftovers(tmp_path)
    assert mine.exists()
