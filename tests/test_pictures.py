"""Pictures of a synthetic set: in a notebook, and as a PNG file."""

import base64
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from messages import refuses
from PIL import Image
from test_exchange import uneven, without
from test_sets import make_set

import gmlib as gm
from gmlib.evaluation import Evaluation
from gmlib.pictures import LETTERS, MOST, THUMBNAIL, grid
from gmlib.runs.shipped import CondensedSet


class Page(HTMLParser):
    """The tags, attributes and text of some HTML, and the image in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        kind, data = next(a["src"] for tag, a in self.tags if tag == "img").split(",")
        assert kind == "data:image/png;base64"
        self.image = Image.open(io.BytesIO(base64.b64decode(data)))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def many(n_classes, ipc, shape=(1, 4, 4)):
    images = torch.rand(n_classes * ipc, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n_classes).repeat_interleave(ipc)
    mean, std = (0,) * shape[0], (1,) * shape[0]
    return gm.SyntheticSet(images, labels, tuple(f"class {c}" for c in range(n_classes)), mean, std)


# ---- in a notebook


def test_every_image_is_in_the_column_of_its_class():
    for S, mode in ((uneven(), "LA"), (make_set(), "RGBA")):
        page = Page(S._repr_html_())
        assert page.image.mode == mode
        shown = np.asarray(page.image)
        levels = (S.pixels() * 255).round().byte().permute(0, 2, 3, 1).numpy()
        (h, w), places = S.shape[1:], []
        for c, n in enumerate(S.counts):
            for j in range(n):
                place = np.s_[j * (h + 2) : j * (h + 2) + h, c * (w + 2) + 1 : c * (w + 2) + 1 + w]
                assert np.array_equal(shown[place][..., :-1], levels[len(places)])
                places.append(place)
        opaque = np.zeros(shown.shape[:2], bool)
        for place in places:
            opaque[place] = True
        assert np.array_equal(shown[..., -1] == 255, opaque) and ((shown[..., -1] == 0) == ~opaque).all()


def test_the_html_says_what_it_shows_and_fits_the_cell():
    S = make_set()
    page = Page(S._repr_html_())
    assert all(name in page.text for name in S.classes) and S.summary in page.text and "clips" in page.text
    styles = " ".join(a.get("style", "") for _, a in page.tags)
    assert "max-width:100%" in styles and "pixelated" in styles and "repeat(3," in styles
    assert not re.search(r"(?<!-)color:(?!inherit)|background", styles), "the colours are those of the page"
    assert "clips" not in Page(uneven()._repr_html_()).text


def test_names_are_shown_as_they_are():
    names = ("<script>alert(1)</script>", 'a" onload="x', "b' & c")
    page = Page(make_set(classes=names)._repr_html_())
    assert not {tag for tag, _ in page.tags} & {"script"} and not any("onload" in a for _, a in page.tags)
    assert all(name in page.text for name in names)


def test_many_classes_and_images_are_left_out_with_a_sentence():
    page = Page(many(25, 30)._repr_html_())
    assert page.image.size == (MOST * 6, MOST * 6 - 2)
    assert "first 20 of 25 classes" in page.text and "20 of up to 30 images" in page.text
    assert "class 19" in page.text and "class 20" not in page.text
    assert not re.search(r"\d+ of (up to )?\d+ (classes|images of each)", Page(many(3, 4)._repr_html_()).text)


def test_large_images_are_made_smaller_in_a_notebook_only():
    S = many(15, 10, (1, 120, 240))
    page = Page(S._repr_html_())
    assert "made smaller" in page.text and "of up to 10 images" in page.text
    assert page.image.width == 15 * (THUMBNAIL + 6)
    S = many(2, 1, (3, 120, 240))
    assert S.picture().width >= 480
    small = np.asarray(Page(S._repr_html_()).image)[:48, 3:99, :3] / 255
    assert np.abs(small.mean((0, 1)) - S.pixels()[0].mean((1, 2)).numpy()).max() < 0.01


def test_the_full_range_runs_from_the_darkest_to_the_lightest_pixel():
    S = make_set()
    shown = grid(S, full_range=True)
    inside = shown.levels[~shown.gaps]
    pixels = S.pixels(clip=False)
    assert (inside.min(), inside.max()) == (0, 255) and (shown.low, shown.high) == (pixels.min(), pixels.max())
    flat = make_set(images=torch.zeros(6, 3, 4, 5), mean=(2, 2, 2))
    assert np.unique(grid(flat, full_range=True).levels).tolist() == [0]
    with refuses(ValueError, "full_range"):
        S.picture(full_range="no")


def test_the_accuracy_of_a_stored_set_is_shown():
    S = make_set()
    parts = {name: getattr(S, name) for name in ("images", "labels", "classes", "mean", "std", "recipe")}
    record = {"method": "MD<i>", "budget": "paper"}
    e = Evaluation((70.0, 71.0), "convnet", 0)
    stored = CondensedSet(**parts, record=record, evaluations={"convnet": e})
    text = Page(stored._repr_html_()).text
    assert str(e) in text and "MD<i>, paper budget" in text
    assert "ccuracy" not in Page(replace(stored, evaluations={})._repr_html_()).text
    assert "ccuracy" not in Page(stored.rescaled(0, 1)._repr_html_()).text, "it was of another scale"


def test_without_pillow_the_repr_is_shown(monkeypatch, tmp_path):
    without("PIL", monkeypatch)
    S = make_set()
    assert S._repr_html_() is None and repr(S).startswith("SyntheticSet(")
    for call in (S.picture, lambda: S.show(tmp_path / "a.png")):
        with refuses(ModuleNotFoundError, "gmlib[data]"):
            call()
    assert not list(tmp_path.iterdir())


def test_show_needs_a_notebook_or_a_path(monkeypatch):
    S, found = make_set(), []
    with refuses(ValueError, "path"):
        S.show()
    display = pytest.importorskip("IPython.display")

    class ZMQInteractiveShell:
        pass

    class TerminalInteractiveShell:
        pass

    monkeypatch.setattr(display, "display", lambda data, raw: found.append(data))
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", TerminalInteractiveShell)
    with refuses(ValueError, "path"):
        S.show()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", ZMQInteractiveShell)
    assert S.show(full_range=True) is None
    assert found[0]["text/plain"] == repr(S) and "Black is" in Page(found[0]["text/html"]).text


# ---- as a file


def test_a_file_shows_enlarged_images_below_the_names(tmp_path, caplog):
    S = uneven()
    path = S.show(tmp_path / "deep" / "set.png")
    assert path == tmp_path / "deep" / "set.png" and [p.name for p in path.parent.iterdir()] == ["set.png"]
    shown = np.asarray(Image.open(path))
    above, times = LETTERS + 8, 9  # 5 x 7 pixels become 45 x 63
    assert shown.shape == (above + times * 19, 3 * times * 9, 3)
    assert (shown[:above] < 128).any(), "there are names"
    second = shown[above : above + times * 5, times * 10 : times * 17, 0].reshape(5, times, 7, times)
    expected = (S.pixels()[1, 0] * 255).round().numpy()
    assert (second == expected[:, None, :, None]).all(), "every pixel is a square"
    assert not caplog.text
    first = path.read_bytes()
    assert S.show(path).read_bytes() == first
    many(25, 1).show(path)
    assert "20 of 25 classes" in caplog.text


@pytest.mark.parametrize("name", ["a.jpg", "a", ".png", "folder.png"])
def test_another_name_is_refused(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with refuses(ValueError, ".png"):
        make_set().show(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_any_name_can_be_drawn():
    for names in (("a" * 500, "\n", ""), ("中文", "\ud800", "müll")):
        assert make_set(classes=names).picture().size == make_set().picture().size
