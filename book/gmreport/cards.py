"""Cards of the condensed sets that can be downloaded, the files behind them, and how to train on a set.

The page shows what `shipped_sets` finds. The Sphinx extension ``downloads`` writes the files that the cards link to,
by `write_downloads`. The same sets always give the same files.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from html import escape
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
import torch
from IPython.display import HTML
from PIL import Image
from torch import Tensor, nn

from gmlib.augment import MAX_DEGREES, MAX_SHIFT, MAX_STRETCH
from gmlib.coresets import CORESETS
from gmlib.evaluation import Evaluation, Protocol
from gmlib.exchange import as_image, npz_bytes, png_bytes, png_files, share
from gmlib.files import read_json, slug, write_atomically
from gmlib.networks import build
from gmlib.runs import shipped
from gmlib.runs.layout import LEAST_NETWORKS, MadeWith, StoredEvaluation, evaluation_from_json
from gmlib.runs.provenance import HOME
from gmlib.runs.readback import stored_whole_data

from .deviations import protocol_departures, recipe_departures
from .figures import sheet_of
from .style import counted, display_name, listed, md, per_class

DOWNLOADS = "_static/sets"  # where the files are in the built report, from its root
SHOWN = 10  # a picture has at most so many classes, and images of each
GREYS = 63  # levels of a grey picture
PLAIN = "plain-training.json"
PLAIN_EPOCHS = 300  # of the paper's protocol without augmentation


# ---- the sets


@dataclass(frozen=True, eq=False)
class Shipped:
    """A set that can be downloaded.

    Attributes
    ----------
    S : CondensedSet
        Its evaluations hold only architectures with enough networks.
    file : Path
        Its safetensors file.
    """

    S: shipped.CondensedSet
    file: Path

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.S.recipe["dataset"]

    @property
    def method(self) -> str:
        """Name of the method, as results store it."""
        return self.S.record["method"]

    @property
    def seed(self) -> int:
        """Seed of the set."""
        return self.S.recipe["seed"]

    @property
    def size(self) -> tuple[str, int]:
        """Data set and images per class."""
        return self.dataset, self.S.ipc

    @property
    def is_condensed(self) -> bool:
        """False for chosen real images."""
        return self.method not in CORESETS

    @property
    def accuracy(self) -> Evaluation | None:
        """Of the ConvNets trained on it, None if there are too few."""
        return self.S.evaluations.get("convnet")

    @cached_property
    def name(self) -> str:
        """Name of its files, without the ending."""
        budget = "" if self.S.budget == "paper" else f"-{self.S.budget}"
        return slug(f"{self.dataset}-ipc{self.S.ipc}-{self.method}-set{self.seed}{budget}")

    @property
    def title(self) -> str:
        """Such as "MD, set 0"."""
        return f"{display_name(self.method)}, set {self.seed}"

    @property
    def counts(self) -> bool:
        """True for a condensed set by the paper's protocol, with ten networks at least."""
        e = self.accuracy
        return (
            self.is_condensed
            and self.S.budget == "paper"
            and e is not None
            and e.trained >= LEAST_NETWORKS
            and not protocol_departures(self.dataset, e)
        )

    @cached_property
    def pixels(self) -> Tensor:
        """The images as pixels that may lie outside [0, 1]."""
        return self.S.pixels(clip=False)

    @cached_property
    def sha256(self) -> str:
        """Of the file, as other programs compute it."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def outside(self) -> float:
        """Share of the pixels that lie outside [0, 1]."""
        return self.S.outside


def shipped_sets(results_dir: str | os.PathLike | None = None) -> list[Shipped]:
    """Every set that comes with the repository, or is in another folder of runs, in the order of `stored_runs`.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If a file is damaged.
    """
    runs = shipped.stored_runs(results_dir)
    sets = shipped.condensed(results_dir)
    return [Shipped(S, run["path"] / "set.safetensors") for run, S in zip(runs, sets, strict=True)]


def recommended(sets: Sequence[Shipped]) -> list[Shipped]:
    """One set for each data set and number of images per class.

    It is the condensed set by the paper's protocol with the best mean accuracy over ten networks at least. If there
    is none, it is the best one of the longest budget; such sets come last.
    """

    def rank(one: Shipped) -> tuple[bool, int, float]:
        return one.counts, *shipped.rank(one.S.budget, one.accuracy)

    usable = [one for one in sets if one.is_condensed and one.accuracy and one.accuracy.n]
    sizes = dict.fromkeys(one.size for one in usable)
    best = [max((one for one in usable if one.size == size), key=rank) for size in sizes]
    return sorted(best, key=lambda one: not one.counts)


# ---- the files


def write_downloads(folder: str | os.PathLike, results_dir: str | os.PathLike | None = None) -> None:
    """Write the files that the cards link to: each set in three formats, and its pictures.

    Parameters
    ----------
    folder : path
        Files that belong to no set are deleted from it.
    results_dir : path, optional
        None takes the results that come with the repository.
    """
    folder = Path(folder)
    files = {}
    for one in shipped_sets(results_dir):
        files[f"{one.name}.safetensors"] = one.file.read_bytes()
        files[f"{one.name}.npz"] = npz_bytes(one.S)
        files[f"{one.name}.zip"] = png_archive(one)
        files[f"{one.name}.png"] = picture(one)
        if one.outside:
            files[f"{one.name}-full.png"] = picture(one, full=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    for path in set(folder.glob("*")) - {folder / name for name in files}:
        path.unlink()


def png_archive(one: Shipped) -> bytes:
    """The images as PNG files in a ZIP archive: a folder for each class, and a README.txt.

    The numbers in front of the class names keep the order of the labels. A loader of image folders sorts by name.
    """
    files = {"README.txt": _readme(one).encode()} | png_files(one.S, numbered=True, digits=4)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{one.name}/{name}")  # its date is always that of 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every machine
            archive.writestr(entry, content)
    return buffer.getvalue()


def _readme(one: Shipped) -> str:
    S = one.S
    lines = [
        f"{one.dataset}, {per_class(S.ipc)}: {one.title}",
        "",
        f"Classes: {', '.join(S.classes)}.",
        f"mean = {list(S.mean)}, std = {list(S.std)}: a network gets (pixels - mean) / std, with pixels in [0, 1].",
        "",
        "The PNG files have 8 bits and are clipped to [0, 1].",
        f"{share(one.outside)} of the set's pixels lie outside. The .safetensors and .npz files hold them",
        "as they are: take one of those for training.",
        "",
        f"Made from {_origin(one)} {_terms(one)}",
    ]
    return "\n".join(lines) + "\n"


def picture(one: Shipped, full: bool = False) -> bytes:
    """The images as one small PNG: a column for each class, clipped to [0, 1], or from the darkest to the lightest.

    At most ten classes, and ten images of each. The gaps between the images are transparent.
    """
    C, ipc = _shown(one)
    pixels = one.pixels.unflatten(0, (one.S.n_classes, one.S.ipc))[:C, :ipc].flatten(0, 1)
    if full:
        low, high = one.pixels.min(), one.pixels.max()
        pixels = (pixels - low) / (high - low)
    sheet, _ = sheet_of(pixels, C, between=math.nan)
    gaps = np.isnan(sheet).reshape(*sheet.shape[:2], -1).any(2)
    sheet = np.nan_to_num(sheet)
    if sheet.ndim == 2:
        indexed = Image.fromarray((sheet * (GREYS - 1)).round().astype(np.uint8))
        palette = [round(255 * i / (GREYS - 1)) for i in range(GREYS) for _ in range(3)]
    else:
        reduced = as_image((sheet * 255).round().astype(np.uint8)).quantize(255, dither=Image.Dither.NONE)
        indexed, palette = Image.fromarray(np.asarray(reduced)), reduced.getpalette()
    transparent = len(palette) // 3
    levels = np.where(gaps, transparent, np.asarray(indexed)).astype(np.uint8)
    indexed = Image.fromarray(levels).convert("P")
    indexed.putpalette([*palette, 255, 255, 255])
    return png_bytes(indexed, transparency=transparent)


def _shown(one: Shipped) -> tuple[int, int]:
    """The classes, and images of each, that `picture` shows."""
    return min(one.S.n_classes, SHOWN), min(one.S.ipc, SHOWN)


# ---- the cards


def sets_sentence(sets: Sequence[Shipped]) -> str:
    """Markdown: what this page is about, and what it has."""
    if not sets:
        return "**No set is here yet.** `gm.condense` makes a set. `make results` makes those of the paper's tables."
    names = listed([md(name) for name in dict.fromkeys(one.dataset for one in sets)])
    sizes = [one.file.stat().st_size / 1000 for one in sets]
    kilobytes = " to ".join(dict.fromkeys(f"{size:,.0f}" for size in (min(sizes), max(sizes))))
    n = sum(one.is_condensed for one in sets)
    return (
        "A condensed set is a file of a few images. A network that is trained on them alone learns much of what the "
        f"whole data set teaches. Here are **{counted(n, 'condensed set')}** of {names}, each {kilobytes} kB, and "
        f"{counted(len(sets) - n, 'set')} of chosen real images for comparison."
    )


def terms_list(sets: Sequence[Shipped]) -> str:
    """Markdown: where the images of each data set come from, and their terms of use."""
    lines: dict[str, list[str]] = {}
    for one in sets:
        origins = lines.setdefault(f"{md(one.dataset)}: {md(_terms(one))}", [])
        if (origin := md(one.S.record["data"]["origin"] or "data of unknown origin")) not in origins:
            origins.append(origin)
    return "\n".join(f"- {terms} The sets were made from {listed(origins)}." for terms, origins in lines.items())


def recommended_cards(sets: Sequence[Shipped]) -> HTML:
    """A large card for each set that `recommended` picks."""
    whole = stored_whole_data()
    cards = []
    for one in recommended(sets):
        random = [
            other.accuracy.mean
            for other in sets
            if (other.size, other.method, other.S.budget) == (one.size, "random", one.S.budget) and other.accuracy
        ]
        against = []
        if random:
            n = counted(len(one.S.images), "random real image")
            against.append(f"{n} instead: {_span(random)}\u00a0%")
        if one.dataset in whole:
            against.append(f"all training images: {whole[one.dataset].mean:.1f}\u00a0%")
        shorter = "" if one.S.budget == "paper" else ", shorter than the paper's"
        by = f"M with the distance {one.title}" if one.method.startswith("multi,") else one.title
        made = f"made by {by}, {_budget(one.S.budget)}{shorter}"
        size = per_class(one.S.ipc).replace(" ", "\u00a0")  # it stays on one line
        cards.append(_card(one, f"{one.dataset}, {size}", made, against))
    return HTML(f'<div class="gm-take">{"".join(cards)}</div>')


def other_cards(sets: Sequence[Shipped]) -> HTML:
    """Small cards of the sets that `recommended` does not pick, folded by data set, size and budget."""
    best = {one.name for one in recommended(sets)}
    groups: dict[tuple[str, int, str], list[Shipped]] = {}
    for one in sets:
        if one.name not in best:
            groups.setdefault((*one.size, one.S.budget), []).append(one)
    parts = []
    for (dataset, ipc, budget), some in groups.items():
        means = [one.accuracy.mean for one in some if one.accuracy and one.accuracy.n]
        span = f", {_span(means)} %" if means else ""
        summary = f"<b>{escape(dataset)}, {per_class(ipc)}</b>, {escape(_budget(budget))}: "
        summary += f"{counted(len(some), 'more set')}{span}"
        cards = "".join(_card(one, one.title) for one in some)
        parts.append(
            f'<details class="gm-take-more"><summary>{summary}</summary><div class="gm-take">{cards}</div></details>'
        )
    return HTML("".join(parts))


def _card(one: Shipped, title: str, subtitle: str = "", against: Sequence[str] = ()) -> str:
    """HTML of a card. With a subtitle it is a large one."""
    heading = f"<h3>{escape(title)}</h3>" + (f'<p class="gm-take-by">{escape(subtitle)}</p>' if subtitle else "")
    if not one.is_condensed:
        heading += '<p class="gm-take-by">chosen real images, for comparison</p>'
    compared = "".join(f"<li>{escape(words)}</li>" for words in against)
    compared = f'<ul class="gm-take-against">{compared}</ul>' if compared else ""
    kinds = ["gm-take-set"] + ["gm-take-best"] * bool(subtitle) + ["gm-take-tall"] * (one.S.ipc > 1)
    return (
        f'<article class="{" ".join(kinds)}" id="{escape(one.name)}"><div class="gm-take-inside">'
        f"<header>{heading}</header><div>{_score(one)}{compared}</div>{_pictures(one)}"
        f"<div>{_buttons(one)}{_details(one)}</div></div></article>"
    )


def _score(one: Shipped) -> str:
    """The accuracy, its interval, and the protocol."""
    e = one.accuracy
    if e is None or not e.n:
        return '<p class="gm-take-score">not evaluated</p>'
    low, high = e.ci95
    interval = f"95 % interval {low:.1f} to {high:.1f}" if e.n > 1 else ""
    diverged = f"; {len(e.failed)} more diverged" if e.failed else ""
    protocol = f"{counted(e.n, 'ConvNet')} trained on it{diverged}, {counted(e.protocol['epochs'], 'epoch')}, "
    protocol += f"augmentation {e.protocol['augment'].replace('+', ', ')}"
    other = "; ".join(
        f"{network} {found.mean:.1f} %"
        for network, found in one.S.evaluations.items()
        if network != "convnet" and found.n
    )
    return (
        f'<p class="gm-take-score"><b>{e.mean:.1f} %</b> <span>{interval}</span>'
        f"<small>{escape(protocol.replace('augmentation none', 'no augmentation'))}"
        f"{f'<br>Other networks: {escape(other)}' if other else ''}</small></p>"
    )


def _pictures(one: Shipped) -> str:
    """The picture clipped to [0, 1], the one of the full range, and the class names above their columns."""
    S = one.S
    C, ipc = _shown(one)
    names = "".join(f"<span>{escape(name)}</span>" for name in S.classes[:C])
    short = " gm-take-short" if max(map(len, S.classes[:C])) <= 2 else ""
    columns = f'<div class="gm-take-columns{short}" style="--gm-take-columns:{C}" aria-hidden="true">{names}</div>'
    left_out = []
    if S.n_classes > C:
        left_out.append(f"the first {C} of {S.n_classes} classes")
    if ipc < S.ipc:
        left_out.append(f"{ipc} of {S.ipc} images of each class")

    def figure(ending: str, kind: str, words: str) -> str:
        said = "; ".join([words, *left_out])
        image = picture_html(one, words, ending)
        return f'<figure class="{kind}">{image}<figcaption>{escape(said)}</figcaption></figure>'

    if not one.outside:
        only = figure("", "gm-take-clipped", "no pixel lies outside [0, 1]")
        return f'<div class="gm-take-pictures">{columns}{only}</div>'
    low, high = one.pixels.min().item(), one.pixels.max().item()
    clipped = figure("", "gm-take-clipped", f"clipped to [0, 1]: {share(one.outside)} of the pixels lie outside")
    full = figure(
        "-full", "gm-take-full", f"full range: black is {low:.1f}, white is {high:.1f}".replace("-", "\u2212")
    )
    if ipc == 1:  # two rows of images need no switch
        return f'<div class="gm-take-pictures">{columns}{clipped}{full}</div>'
    group = escape(f"range-{one.name}")
    switch = "".join(
        f'<input type="radio" name="{group}" id="{group}-{i}"{" checked" if not i else ""}>'
        f'<label for="{group}-{i}">{words}</label>'
        for i, words in enumerate(("clipped", "full range"))
    )
    return f'<div class="gm-take-pictures gm-take-switch">{switch}{columns}{clipped}{full}</div>'


def picture_html(one: Shipped, words: str, ending: str = "") -> str:
    """HTML of a picture that `write_downloads` writes. A browser loads it when it comes into sight.

    Parameters
    ----------
    one
    words
        The end of its description.
    ending
        "-full" for the one of the full range.
    """
    C, ipc = _shown(one)
    height, width = sheet_of(torch.zeros(C * ipc, 1, *one.S.shape[1:]), C)[0].shape
    classes = ", ".join(one.S.classes[:C])
    alt = f"{one.dataset}: {counted(ipc, 'image')} of each of {C} classes ({classes}), {words}"
    return (
        f'<img class="gm-pixels" src="{_address(one, f"{ending}.png")}" width="{width}" height="{height}" '
        f'loading="lazy" decoding="async" alt="{escape(alt)}">'
    )


def _buttons(one: Shipped) -> str:
    sizes = {"safetensors": one.file.stat().st_size, "npz": len(npz_bytes(one.S)), "zip": len(png_archive(one))}
    words = {"safetensors": ".safetensors", "npz": ".npz", "zip": "PNG folder (.zip)"}
    links = [
        f'<a class="gm-take-button" href="{_address(one, f".{ending}")}" download>{words[ending]} '
        f"<small>{size / 1000:,.0f} kB</small></a>"
        for ending, size in sizes.items()
    ]
    return f'<p class="gm-take-buttons">{"".join(links)}</p>'


def _details(one: Shipped) -> str:
    """Folded: how the set was made, and its citation."""
    S, record = one.S, one.S.record
    made = record["recipe"]
    precision = {"float32": "float32", "bf16": "bfloat16 for the pass over real images, else float32"}
    changes = [str(change) for change in recipe_departures(record) if not change.what.startswith("precision")]
    size = f"{counted(len(S.images), 'image')} of {' × '.join(map(str, S.shape))}"
    device = record["device_name"]
    if record["device"] == "cpu":
        threads = record["threads"]
        device += ", " + counted(threads, "thread") if isinstance(threads, int) else f", {threads} threads"
    commit = record["commit"] or "unknown"
    date = commit_date(commit)
    rows = {
        "size": f"{size}, {one.file.stat().st_size:,} bytes",
        "method": display_name(one.method)
        + (f": what {made['what']}, how {made['how']}, where {made['where']}" if "what" in made else ""),
        "budget": "; ".join([S.budget, *changes]),
        "outer iterations": made.get("outer_loops"),
        "time": _duration(record["seconds"]),
        "device": device,
        "precision": precision.get(made.get("precision"), made.get("precision")),
        "commit": commit + (f" of {date}" if date else ""),
        "sha256 of the file": one.sha256,
        "data": f"{_origin(one)} {_terms(one)}",
        "with gmlib": gmlib_code(one).splitlines()[1],
    }
    listed = "".join(
        f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in rows.items() if value is not None
    )
    entry = f'<div class="highlight"><pre>{escape(bibtex(one))}</pre></div>'
    return (
        f'<details class="gm-take-fold"><summary>How it was made</summary><dl>{listed}</dl></details>'
        f'<details class="gm-take-fold"><summary>Cite</summary>{entry}</details>'
    )


def bibtex(one: Shipped) -> str:
    """A BibTeX entry for a set. The paper's own entry is a second one."""
    record = one.S.record
    date = commit_date(record["commit"] or "")
    what = "Condensed" if one.is_condensed else "Chosen images of"
    title = f"{what} {one.dataset}, {per_class(one.S.ipc)} ({one.title})"
    note = f"gmlib {record['gmlib']}, budget {one.S.budget}, sha256 {one.sha256[:16]}"
    fields = {"title": f"{{{_tex(title)}}}", "author": "{{the gmlib authors}}", "note": f"{{{_tex(note)}}}"}
    if date:
        fields["year"] = f"{{{date[:4]}}}"
    key = re.sub(r"[^A-Za-z0-9]+", "-", f"gmlib-{one.name}").strip("-")
    return f"@misc{{{key},\n" + ",\n".join(f"  {name:6} = {value}" for name, value in fields.items()) + "\n}"


def _tex(text: str) -> str:
    """Text in BibTeX, shown as it is. Backslashes and braces are left out."""
    return re.sub(r"([%&$#_~^])", r"\\\1", re.sub(r"[\\{}]", "", " ".join(text.split())))


@cache
def commit_date(commits: str) -> str | None:
    """The day of the last of these commits as YYYY-MM-DD, None if the history of the repository is not there.

    Runs store their commit and no date.
    """
    last = commits.split(", ")[-1].removesuffix("+")
    if not re.fullmatch("[0-9a-f]{7,40}", last):
        return None
    command = ["git", "-C", str(HOME), "show", "--no-patch", "--format=%cs", last]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _address(one: Shipped, ending: str) -> str:
    return escape(f"{DOWNLOADS}/{quote(one.name + ending)}")


def _origin(one: Shipped) -> str:
    return f"{one.S.record['data']['origin'] or 'data of unknown origin'}."


def _terms(one: Shipped) -> str:
    return f"{shipped.SOURCES.get(one.dataset, 'The terms of use are not recorded')}."


def _budget(budget: str) -> str:
    return "by the paper's protocol" if budget == "paper" else f"budget {budget}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---- training on a set

# What an operation of phase 2 does to an image.
OPERATIONS = {
    "shift": f"shifted by up to {MAX_SHIFT} pixels",
    "stretch": f"stretched by {1 - MAX_STRETCH:g} to {1 + MAX_STRETCH:g} in height and width",
    "turn": f"turned by up to {MAX_DEGREES} degrees",
    "noise": "covered with a little noise",
}
_TRAIN = """for epoch in range({epochs}):
    optimiser.zero_grad()
    F.cross_entropy(network({images}), S["labels"]).backward()
    optimiser.step()
"""
_ALONE = """import json

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

# A network for images of {shape}: here the paper's ConvNet. Any other will do.
blocks = []
for channels, padding in {inputs}:
    blocks += [nn.Conv2d(channels, {width}, 3, padding=padding), nn.GroupNorm({width}, {width})]
    blocks += [nn.ReLU(), nn.AvgPool2d(2)]
network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear({features}, {classes}))
weights = network.parameters()
optimiser = torch.optim.SGD(weights, lr={lr}, momentum={momentum}, weight_decay={weight_decay})

# Five lines: load the set and train on it. Its images are normalised already.
S = load_file({file})
{train}
# Real images need the same normalisation. Its numbers are in the file's header.
header = safe_open({file}, "pt").metadata()
mean = torch.tensor(json.loads(header["mean"])).view(-1, 1, 1)
std = torch.tensor(json.loads(header["std"])).view(-1, 1, 1)


def predict(pixels):  # of real images, in [0, 1]
    return network((pixels - mean) / std).argmax(1)
"""


def training_code(one: Shipped) -> str:
    """Python lines that train the paper's ConvNet on a downloaded set, without gmlib and without augmentation."""
    protocol = asdict(Protocol()) | (one.accuracy.protocol if one.accuracy else {})
    size = {name: protocol[name] for name in ("width", "depth")}
    network = build("convnet", one.S.shape, one.S.n_classes, generator=torch.Generator(), **size)
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    return _ALONE.format(
        shape=" x ".join(map(str, one.S.shape)),
        inputs=tuple((layer.in_channels, layer.padding[0]) for layer in convolutions),
        features=network[-1].in_features,
        classes=one.S.n_classes,
        file=json.dumps(f"{one.name}.safetensors"),
        train=_TRAIN.format(
            epochs=protocol["epochs"] if protocol["augment"] == "none" else PLAIN_EPOCHS,
            images='S["images"].float()',
        ),
        **{name: protocol[name] for name in ("width", "lr", "momentum", "weight_decay")},
    )


def augmented_code(one: Shipped) -> str:
    """The loop of `training_code` with the paper's augmentation and epochs, and the line that makes it."""
    train = _TRAIN.format(epochs=one.accuracy.protocol["epochs"], images='vary(S["images"].float())')
    return f"import gmlib as gm\n\nvary = gm.augment.paper_transform({json.dumps(one.dataset)})\n{train}"


def gmlib_code(one: Shipped) -> str:
    """Three lines that load a set with gmlib."""
    budget = "" if one.S.budget == "paper" else f", budget={json.dumps(one.S.budget)}"
    asked = f"{json.dumps(one.dataset)}, ipc={one.S.ipc}, method={json.dumps(one.method)}, seed={one.seed}{budget}"
    return f"import gmlib as gm\nS = gm.load_condensed({asked})\ndataset = S.to_dataset()  # a torch TensorDataset\n"


def training_sentence(one: Shipped, sets: Sequence[Shipped]) -> str:
    """Markdown: what networks reach on a set by its protocol, without augmentation, and on its PNG files.

    Parameters
    ----------
    one : Shipped
    sets : sequence of Shipped
        If nothing was measured on this set, another one of its size is taken.
    """
    e = one.accuracy
    varied = [OPERATIONS.get(name, md(name)) for name in e.protocol["augment"].split("+")]
    how = "without augmentation"
    if e.protocol["augment"] != "none":
        how = f"with augmentation: in each epoch every image is {listed(varied, 'or')}"
    sentences = [f"The accuracy on the card, **{_mean(e)}**, was reached in {_epochs(e)} {how}."]
    measured = {name.S.record["set"]: (name, plain_training(name)) for name in (one, *sets) if name.size == one.size}
    for other, found in measured.values():
        if not found:
            continue
        on = "it" if other.name == one.name else f"{md(other.title)} ({other.accuracy.mean:.1f} %)"
        plain = sorted(
            (x for (pixels, augment, _), x in found.items() if (pixels, augment) == ("as stored", "none")),
            key=lambda x: x.protocol["epochs"],
        )
        if plain:
            reached = ", and ".join(f"**{_mean(x)}** in {_epochs(x)}" for x in plain)
            sentences.append(f"Without augmentation, networks trained on {on} reach {reached}.")
        sentences += [
            f"With augmentation, the clipped pixels of its PNG files give {_mean(x)}."
            for (pixels, _, _), x in found.items()
            if pixels == "clipped"
        ]
        break
    return " ".join(sentences)


def _mean(e: Evaluation) -> str:
    interval = " [{:.1f}, {:.1f}]".format(*e.ci95) if e.n > 1 else ""
    return f"{e.mean:.1f} %{interval}"


def _epochs(e: Evaluation) -> str:
    return f"{e.protocol['epochs']:,} epochs"


class Measured(StoredEvaluation, kw_only=True):
    """Networks trained on a set in another way than the paper's. ``of`` is the digest of the set.

    ``pixels`` is "as stored", or "clipped" for the pixels of the PNG files.
    """

    of: str
    pixels: str


class PlainTraining(msgspec.Struct):
    """plain-training.json."""

    measured: list[Measured]


def plain_training(
    one: Shipped, results_dir: str | os.PathLike | None = None
) -> dict[tuple[str, str, int], Evaluation]:
    """Accuracies of networks trained on a set in other ways than the paper's.

    Returns
    -------
    dict
        (pixels, augmentation, epochs) -> evaluation. Empty if there is none.

    Raises
    ------
    FileNotFoundError
        If there is no folder of results.
    ValueError
        If the file is damaged.
    """
    path = shipped.results_folder(results_dir) / PLAIN
    if not path.is_file():
        return {}
    measured = read_json(path, PlainTraining, MadeWith)["measured"]
    evaluations = [(m["pixels"], evaluation_from_json(m)) for m in measured if m["of"] == one.S.record["set"]]
    return {(pixels, e.protocol["augment"], e.protocol["epochs"]): e for pixels, e in evaluations}
