"""Cards of the sets that can be downloaded, the files behind them, and the lines that train without gmlib."""

import ast
import html
import importlib.util
import io
import json
import math
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import jupytext
import numpy as np
import pytest
import torch
from conftest import make_data
from PIL import Image

import gmlib as gm
from gmlib import recipe as recipes
from gmlib.evaluation import Evaluation, Protocol
from gmlib.files import read_json, write_json
from gmlib.runs import shipped, store
from gmlib.runs.layout import MadeWith, evaluation_to_json
from gmreport import cards

ROOT = Path(__file__).parent.parent
NAMES = ("0/../zero", "<script>alert(1)</script>", "a & \"b\" 'c'")  # nobody checks the names of classes
TINY = recipes.Budget(
    recipe={"width": 4, "depth": 2, "batch_real": 4, "outer_loops": 2}, many={"inner_loops": 2, "zeta_theta": 1},
    sets=2, networks=3, epochs=4,
)  # fmt: skip


def evaluation(accuracies, dataset="MNIST", **changes):
    augment = "shift+stretch+turn" if dataset == "MNIST" else "none"
    protocol = asdict(Protocol()) | {"epochs": 1000 if dataset == "MNIST" else 300, "augment": augment}
    return Evaluation(tuple(map(float, accuracies)), "convnet", 0, protocol | changes)


def a_set(
    folder, method="MD", seed=0, dataset="MNIST", budget="paper", accuracies=(90,) * 10, images=None, **protocol
):
    """A set as `shipped_sets` gives it, of three classes of 6 x 8 pixels."""
    if images is None:
        images = torch.randn(3, 1, 6, 8, generator=torch.Generator().manual_seed(seed))
    ipc = len(images) // 3
    recipe = {"dataset": dataset, "ipc": ipc, "seed": seed}
    S = gm.SyntheticSet(
        images,
        torch.arange(3).repeat_interleave(ipc),
        NAMES,
        (0.5,) * images.shape[1],
        (0.25,) * images.shape[1],
        recipe,
    )
    file = folder / f"{len(list(folder.glob('*')))}.safetensors"
    made = {"width": 128, "depth": 3} | recipe
    record = {
        "method": method, "budget": budget, "recipe": {"method": "random", **made},
        "data": {"name": dataset, "origin": "<i>"},
        "set": S.save(file), "gmlib": "0.2.0", "commit": None, "device": "cpu", "device_name": "<b>CPU", "threads": 1,
        "seconds": 90.0,
    }  # fmt: skip
    evaluations = {"convnet": evaluation(accuracies, dataset, **protocol)} if len(accuracies) else {}
    parts = {name: getattr(S, name) for name in ("images", "labels", "classes", "mean", "std", "recipe")}
    return cards.Shipped(shipped.CondensedSet(**parts, record=record, evaluations=evaluations), file)


class Elements(HTMLParser):
    """The elements of some HTML, with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def addresses(self):
        return [unquote(a[name]) for _, a in self.found for name in ("href", "src") if name in a]


# ---- the recommended set ---------------------------------------------------------------------------------


def test_the_best_condensed_set_by_the_papers_protocol_is_recommended(tmp_path):
    best = a_set(tmp_path, "MD", 1, accuracies=[91] * 10)
    others = [
        a_set(tmp_path, "MD", 0, accuracies=[90] * 10),
        a_set(tmp_path, "herding", 0, accuracies=[95] * 10),  # chosen real images
        a_set(tmp_path, "DC", 0, accuracies=[95] * 9),  # too few networks
        a_set(tmp_path, "DC", 1, accuracies=[95] * 10, epochs=2000),  # another protocol
        a_set(tmp_path, "DC", 2, budget="lite", accuracies=[95] * 50),
        a_set(tmp_path, "DC", 3, accuracies=[]),
    ]
    assert cards.recommended([*others[:3], best, *others[3:]]) == [best]


def test_else_the_best_of_the_longest_budget_which_comes_last(tmp_path):
    smoke = a_set(tmp_path, "DC", 0, "A", "smoke", accuracies=[99] * 5)
    lite = [a_set(tmp_path, "DC", seed, "A", "lite", accuracies=[70 + seed] * 5) for seed in range(2)]
    random = a_set(tmp_path, "random", 0, "A", accuracies=[60] * 10)
    paper = a_set(tmp_path, "MD", 0, "B")
    assert cards.recommended([random, smoke, *lite, paper]) == [paper, lite[1]]
    assert cards.recommended([random, a_set(tmp_path, "DC", accuracies=[])]) == []


def test_each_size_has_its_own(tmp_path):
    one, ten = a_set(tmp_path), a_set(tmp_path, images=torch.randn(30, 1, 6, 8), accuracies=[80] * 10)
    assert cards.recommended([one, ten]) == [one, ten]


# ---- the files -------------------------------------------------------------------------------------------


@pytest.fixture
def some(tmp_path, monkeypatch):
    """Three sets, as if they came with the repository: grey, in colour with ten images, and of real pixels."""
    folder = tmp_path / "some"
    folder.mkdir()
    real = (torch.randint(0, 256, (3, 1, 6, 8)) / 255 - 0.5) / 0.25
    sets = [
        a_set(folder),
        a_set(folder, "multi,d1+100*d4,fixed", 1, 'x"><img src=y>', "lite", images=torch.randn(36, 3, 6, 8)),
        a_set(folder, "random", images=real.half().float()),
    ]
    monkeypatch.setattr(cards, "shipped_sets", lambda results_dir=None: sets)
    monkeypatch.setattr(cards, "stored_whole_data", dict)
    return sets


def test_every_format_holds_the_set(some, tmp_path):
    cards.write_downloads(tmp_path / "out")
    for one in some:
        S, path = one.S, tmp_path / "out" / one.name
        loaded = gm.SyntheticSet.load(f"{path}.safetensors")
        assert torch.equal(loaded.images, S.images) and loaded.classes == S.classes
        with np.load(f"{path}.npz") as arrays:  # without pickle
            assert np.array_equal(arrays["images"], S.images.numpy()) and arrays["images"].dtype == np.float32
            assert arrays["labels"].tolist() == S.labels.tolist() and tuple(arrays["classes"]) == S.classes
            assert tuple(arrays["mean"]) == S.mean and tuple(arrays["std"]) == S.std
        with zipfile.ZipFile(f"{path}.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            levels = [np.atleast_3d(Image.open(io.BytesIO(archive.read(name)))) for name in names]
            text = archive.read(f"{one.name}/README.txt").decode()
        expected = (S.pixels() * 255).round().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(np.stack(levels), expected), "sorted by name they are in the order of the labels"
        assert all(re.fullmatch(r"[^/]+/\d-[^/]+/\d{4}\.png", name) for name in names), names
        assert "(pixels - mean) / std" in text and "<i>" in text and NAMES[1] in text


def test_the_same_sets_give_the_same_bytes(some, tmp_path, monkeypatch):
    def written():
        cards.write_downloads(tmp_path / "out")
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    first = written()
    (tmp_path / "out" / "a set that is gone.zip").write_bytes(b"")
    later = time.time() + 10_000_000
    for name in ("time", "localtime"):
        monkeypatch.setattr(time, name, {"time": lambda: later, "localtime": lambda *_: time.gmtime(later)}[name])
    assert written() == first and len(first) == 3 * 4 + 2


def test_pictures_are_small_and_show_the_pixels(some):
    for one, full in ((some[0], False), (some[0], True), (some[2], False)):
        png = Image.open(io.BytesIO(cards.picture(one, full)))
        assert png.mode == "P" and png.size == (3 * 8 + 2, 6)
        shown = np.asarray(png.convert("LA"))
        pixels = one.pixels.numpy()[:, 0]
        expected = (pixels - pixels.min()) / (pixels.max() - pixels.min()) if full else pixels.clip(0, 1)
        for c in range(3):
            image = shown[:, c * 9 : c * 9 + 8]
            assert (
                np.abs(image[..., 0] / 255 - expected[c]).max() < 0.5 / 62 + 0.5 / 255
                and (image[..., 1] == 255).all()
            )
        assert (shown[:, [8, 17], 1] == 0).all(), "gaps are transparent"
    colour = Image.open(io.BytesIO(cards.picture(some[1])))
    assert colour.mode == "P" and colour.size == (3 * 8 + 2, 10 * 6 + 9), "ten of twelve images"
    seen = np.asarray(colour.convert("RGB"))[:6, :8] / 255
    assert np.abs(seen - some[1].S.pixels()[0].permute(1, 2, 0).numpy()).mean() < 0.05


def test_the_share_outside(some, tmp_path):
    assert some[2].outside == 0, "float16 keeps no real pixel exactly"
    images = torch.tensor([-2.1, -2.0, 0.0, 2.0, 2.1, 9.0]).repeat(3, 1, 8, 1).transpose(2, 3).contiguous()
    assert a_set(tmp_path, images=images).outside == pytest.approx(1 / 2)


# ---- the cards -------------------------------------------------------------------------------------------


def shown_by(sets):
    return Elements(cards.recommended_cards(sets).data + cards.other_cards(sets).data)


def test_every_set_has_a_card_whose_links_lead_to_files(some, tmp_path):
    page = shown_by(some)
    cards.write_downloads(tmp_path / cards.DOWNLOADS)
    there = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / cards.DOWNLOADS).iterdir()}
    assert set(page.addresses()) == there and len(page.addresses()) == len(there)
    assert [a["id"] for tag, a in page.found if tag == "article"] == [one.name for one in some]
    assert all(a["loading"] == "lazy" and a["alt"] for tag, a in page.found if tag == "img")
    assert sum(tag == "input" for tag, _ in page.found) == 2, "a switch only where there are many images"


def test_names_are_shown_as_they_are(some):
    page = shown_by(some)
    assert not {tag for tag, _ in page.found} & {"script", "i"} and not any("onerror" in a for _, a in page.found)
    for word in (NAMES[1], 'x"><img src=y>', "<b>CPU", "<i>"):
        assert word in page.text
    for words in (cards.sets_sentence(some), cards.terms_list(some)):
        assert "<img" not in words and "<i>" not in words


def test_a_card_says_what_its_accuracy_is_worth(tmp_path):
    one = a_set(tmp_path, accuracies=[90, 91, 92] * 4)
    text = Elements(cards._card(one, "title")).text
    low, high = one.accuracy.ci95
    assert f"91.0 % 95 % interval {low:.1f} to {high:.1f}" in text
    assert "12 ConvNets trained on it, 1000 epochs, augmentation shift, stretch, turn" in text
    plain = a_set(tmp_path, dataset="A", accuracies=[90])
    assert "1 ConvNet trained on it, 300 epochs, no augmentation" in Elements(cards._card(plain, "title")).text
    assert "not evaluated" in Elements(cards._card(a_set(tmp_path, accuracies=[]), "title")).text


def test_a_recommended_set_is_compared_with_random_images(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "stored_whole_data", lambda: {"MNIST": evaluation([99.5, 99.7])})
    sets = [a_set(tmp_path)] + [a_set(tmp_path, "random", i, accuracies=[60 + i] * 10) for i in range(3)]
    sets.append(a_set(tmp_path, "random", 0, budget="lite", accuracies=[10] * 5))
    text = Elements(cards.recommended_cards(sets).data).text
    assert "3 random real images instead: 60.0 to 62.0\u00a0%" in text and "all training images: 99.6\u00a0%" in text


def test_a_citation_is_bibtex(tmp_path):
    one = a_set(tmp_path, "multi,d1+100*d4,fixed", dataset="100% {real}\\_data")
    entry = cards.bibtex(one)
    key = re.match(r"@misc\{([A-Za-z0-9-]+),\n", entry)
    assert key and entry.count("{") == entry.count("}") and "100\\% real\\_data" in entry
    assert f"sha256 {one.sha256[:16]}" in entry and "year" not in entry, "the commit is unknown"


def test_the_date_of_a_commit():
    head = subprocess.run(["git", "-C", ROOT, "log", "-1", "--format=%h %cs"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("the history of the repository is not here")
    commit, date = head.stdout.split()
    assert cards.commit_date(f"0123456, {commit}+") == date
    assert cards.commit_date("unknown") is None and cards.commit_date("0" * 40) is None
    assert cards.commit_date("--output=x") is None


# ---- training on a set -----------------------------------------------------------------------------------


def without_gmlib(folder, code, after, steps):
    """Run printed lines in a process that cannot import gmlib, with no more than some steps, then further lines."""
    runner = (
        "import builtins, sys\n"
        "sys.modules['gmlib'] = sys.modules['gmreport'] = None\n"
        "code, after, steps = sys.argv[1:]\n"
        "names = {'range': lambda n: builtins.range(min(n, int(steps)))}\n"
        "exec(code, names)\n"
        "exec(after, names)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", runner, code, after, str(steps)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


AFTER = """
print(json.dumps({
    "agree": (predict(S["images"].float() * std + mean) == network(S["images"].float()).argmax(1)).all().item(),
    "right": (network(S["images"].float()).argmax(1) == S["labels"]).float().mean().item(),
    "loss": F.cross_entropy(network(S["images"].float()), S["labels"]).item(),
    "parameters": sum(p.numel() for p in network.parameters()),
}))
"""


def code_blocks(shown):
    return re.findall(r"(?s)```python\n(.*?)```", "\n".join(shown))


def test_the_printed_lines_train_on_a_shipped_set_without_gmlib(monkeypatch, tmp_path):
    """The lines are those of the page. Only the number of epochs is cut, by another `range`."""
    sets = cards.shipped_sets()
    best = cards.recommended(sets)[0]
    monkeypatch.setattr(cards, "shipped_sets", lambda results_dir=None: [best])
    (tmp_path / f"{best.name}.safetensors").write_bytes(best.file.read_bytes())
    code = code_blocks(page(monkeypatch, ROOT / "results"))[0]
    found = without_gmlib(tmp_path, code, AFTER, steps=4)
    network = gm.networks.build("convnet", best.S.shape, best.S.n_classes, generator=torch.Generator())
    assert found["parameters"] == sum(p.numel() for p in network.parameters()), "the paper's network"
    assert found["agree"] and found["loss"] < math.log(best.S.n_classes), "it learned"


def test_the_printed_lines_for_a_set_of_another_size(tmp_path, monkeypatch):
    one = a_set(tmp_path, images=torch.randn(6, 3, 16, 16), accuracies=[50], dataset="A", width=4, depth=2, epochs=40)
    one.file.rename(tmp_path / f"{one.name}.safetensors")
    monkeypatch.chdir(tmp_path)
    code = cards.training_code(one)
    exec(code, names := {})
    network = gm.networks.build("convnet", (3, 16, 16), 3, generator=torch.Generator(), width=4, depth=2)
    names["network"].load_state_dict(network.state_dict())
    assert torch.equal(names["network"](one.S.images), network(one.S.images)), "the same network"
    assert torch.equal(names["predict"](one.pixels), names["network"](one.S.images).argmax(1))
    assert "range(40)" in code and max(map(len, code.splitlines())) <= 100


def test_five_lines_need_the_set(tmp_path):
    code = cards.training_code(a_set(tmp_path, images=torch.randn(3, 1, 16, 16)))
    lines = code[code.index("S = load_file") : code.index("\n\n# Real images")].splitlines()
    assert len(lines) == 5 and "range(300)" in lines[1]
    ast.parse(code)


def test_the_lines_with_augmentation(tmp_path, monkeypatch):
    """They run after the others. The paper's transform and the number of epochs are all that differs."""
    one = a_set(tmp_path, images=torch.randn(3, 1, 8, 8), width=4, depth=3)
    one.file.rename(tmp_path / f"{one.name}.safetensors")
    monkeypatch.chdir(tmp_path)
    names = {"range": lambda n: range(min(n, 2))}
    exec(cards.training_code(one), names)
    seen = []
    real = gm.augment.paper_transform
    monkeypatch.setattr(gm.augment, "paper_transform", lambda name: seen.append(name) or real(name))
    before = [p.detach().clone() for p in names["network"].parameters()]
    exec(cards.augmented_code(one), names)
    assert seen == ["MNIST"] and "range(1000)" in cards.augmented_code(one)
    assert not all(torch.equal(a, b) for a, b in zip(before, names["network"].parameters(), strict=True))
    loop = cards.training_code(one).split('safetensors")\n')[1].split("\n\n")[0]
    with_it = cards.augmented_code(one).split("\n", 3)[3]
    assert with_it.replace("vary(", "").replace("())),", "()),").replace("1000", "300").strip() == loop.strip()


def measured(one, accuracies, pixels="as stored", **protocol):
    e = evaluation(accuracies, **protocol)
    return evaluation_to_json(e) | {"of": one.S.record["set"], "pixels": pixels}


def test_what_the_accuracy_needs_is_said(tmp_path):
    made_with = dict.fromkeys(("gmlib", "commit", "python", "torch", "device", "device_name"), "") | {"threads": 1}
    best, other = a_set(tmp_path, accuracies=[92, 93] * 5), a_set(tmp_path, "DC", 1, accuracies=[91] * 10)
    results = tmp_path / "results"
    results.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "FOLDER", results)
        said = cards.training_sentence(best, [best, other])
        assert (
            "**92.5 % [" in said and "1,000 epochs with augmentation: in each epoch every image is shifted by" in said
        )
        assert (
            "stretched by 0.8 to 1.2 in height and width or turned by up to 45 degrees" in said
            and "Without" not in said
        )
        content = {"measured": [measured(other, [85] * 5, augment="none", epochs=300)]} | made_with
        write_json(results / cards.PLAIN, content)
        said = cards.training_sentence(best, [best, other])
        assert "networks trained on DC, set 1 (91.0 %) reach **85.0 % [85.0, 85.0]** in 300 epochs" in said
        content["measured"] += [
            measured(best, [88] * 5, augment="none", epochs=1000),
            measured(best, [86] * 5, augment="none", epochs=300),
            measured(best, [89] * 5, "clipped"),
        ]
        write_json(results / cards.PLAIN, content)
        said = cards.training_sentence(best, [best, other])
    assert "on it reach **86.0 % [86.0, 86.0]** in 300 epochs, and **88.0 % [88.0, 88.0]** in 1,000 epochs" in said
    assert "PNG files give 89.0 % [89.0, 89.0]" in said


def test_the_committed_measurement_is_of_shipped_sets():
    content = read_json(ROOT / "results" / cards.PLAIN, cards.PlainTraining, MadeWith)
    sets = {one.S.record["set"]: one for one in cards.shipped_sets()}
    for entry in content["measured"]:
        one = sets[entry["of"]]
        assert (one.method, one.seed) == (entry["method"], entry["set_seed"])
        changed = {"augment", "epochs"} if entry["pixels"] == "as stored" else set()
        usual = one.accuracy.protocol
        assert {name for name in usual if usual[name] != entry["protocol"][name]} <= changed
        assert all(a * 100 == pytest.approx(round(a * 100)) for a in entry["accuracies"]), "of 10,000 test images"
    assert cards.plain_training(next(one for one in cards.recommended(list(sets.values())) if one.dataset == "MNIST"))


# ---- the page and its files in the book ------------------------------------------------------------------


def page(monkeypatch, folder):
    """What book/sets.md shows for the sets in a folder, as HTML or Markdown."""
    import IPython.display

    shown = []

    def display(thing):
        shown.append(thing._repr_html_() if hasattr(thing, "_repr_html_") else thing.data)

    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(IPython.display, "display", display)
    names = {}
    for cell in jupytext.read(ROOT / "book" / "sets.md").cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    return shown


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two data sets' worth of tiny runs, under two budgets of milliseconds with the names of the real ones."""
    root, data = tmp_path_factory.mktemp("results"), make_data((12, 12, 12), dtype=torch.float32, n_test=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.BUDGETS, "lite", TINY)
        patch.setitem(recipes.BUDGETS, "paper", replace(TINY, recipe={**TINY.recipe, "outer_loops": 3}))
        for method, ipc, budget, seed in (
            ("M", 1, "paper", 0),
            ("M", 1, "lite", 0),
            ("DC", 1, "lite", 1),
            ("random", 10, "lite", 0),
        ):
            options = {"device": "cpu", "progress": False, "results_dir": shipped.folder(budget, root)}
            store.run(data, method, ipc, seed=seed, budget=budget, **options)
        yield root


def test_the_page_shows_every_set(results, monkeypatch):
    shown = page(monkeypatch, results)
    text = html.unescape("\n".join(shown))
    assert "**3 condensed sets** of made-up" in shown[0] and "1 set of chosen real images" in shown[0]
    for run in shipped.stored_runs(results):
        S = shipped.load(run["path"])
        assert f"{S.accuracy.mean:.1f} %" in text and f"set {run['seed']}" in text
        assert f"{(run['path'] / 'set.safetensors').stat().st_size:,} bytes" in text
    assert text.count("data of unknown origin. The terms of use are not recorded.") == 4
    assert "lite; outer iterations: 2 instead of 3" in text
    best = shown[1]
    assert best.count("<article") == 1 and 'id="made-up-ipc1-M-set0"' in best, "the one by the paper's protocol"
    gmlib_lines = code_blocks(shown)[-1]
    exec(gmlib_lines, names := {})
    assert len(names["dataset"]) == 3 and 'method="M", seed=0)' in gmlib_lines


def test_the_source_of_the_images_is_named(results, monkeypatch):
    monkeypatch.setitem(shipped.SOURCES, "made-up", "They are in the public domain")
    assert "They are in the public domain. The sets were made from data of unknown" in page(monkeypatch, results)[-1]
    committed = {one.dataset for one in cards.shipped_sets(ROOT / "results")}
    assert committed <= set(shipped.SOURCES), "name the source of the images of every set that is shipped"


def test_the_page_says_so_if_there_is_no_set(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    shown = page(monkeypatch, tmp_path / "results")
    assert shown[0].startswith("**No set is here yet.**") and not code_blocks(shown)


def test_the_book_gets_the_files(results, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", results)
    spec = importlib.util.spec_from_file_location("downloads", ROOT / "book" / "_ext" / "downloads.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    handlers = {}
    extension.setup(SimpleNamespace(connect=handlers.__setitem__))
    for kind, exception in (("latex", None), ("html", ValueError())):
        app = SimpleNamespace(builder=SimpleNamespace(format=kind), outdir=tmp_path)
        handlers["build-finished"](app, exception)
        assert not list(tmp_path.iterdir())
    handlers["build-finished"](SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path), None)
    assert len(list((tmp_path / cards.DOWNLOADS).glob("*.safetensors"))) == 4
