"""Pictures of a synthetic set: a column for each class, as HTML for a notebook and as a PNG file."""

from __future__ import annotations

import base64
import html
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch.nn.functional as F

from .checks import check_flag, require
from .exchange import as_image, file_to_write, png_bytes, share
from .files import write_atomically

if TYPE_CHECKING:
    from .sets import SyntheticSet

log = logging.getLogger(__name__)

MOST = 20  # a picture shows at most so many classes, and images of each
SIDE = 64  # smaller images are enlarged to about so many pixels
THUMBNAIL = 96  # larger images are made smaller in a notebook
IN_A_NOTEBOOK = 2**19  # pixels of the images that are shown there, since notebooks store their pictures
IN_A_FILE = 2**24
LETTERS = 12  # height of the class names in a file, in pixels


class Grid(NamedTuple):
    """Images of a set side by side.

    Attributes
    ----------
    levels : ndarray
        (height, width, channels) uint8.
    gaps : ndarray
        (height, width) bool, True where there is no image.
    columns : int
        How many classes are shown.
    times : int
        How often a pixel is to be repeated down and across.
    low, high : float
        The pixels shown as black and white.
    notes : list of str
        What is left out or changed, in sentences without full stops.
    """

    levels: np.ndarray
    gaps: np.ndarray
    columns: int
    times: int
    low: float
    high: float
    notes: list[str]


def grid(S: SyntheticSet, full_range: bool = False, most_pixels: int = IN_A_FILE, most_side: int = 2**15) -> Grid:
    """The images of a set, a column for each class.

    Parameters
    ----------
    S : SyntheticSet
    full_range : bool
        False clips pixels to [0, 1]. True shows the darkest pixel of the set as black and its lightest as white.
    most_pixels : int
        Of all shown images. Fewer images of each class are shown if they have more, but one at least.
    most_side : int
        Larger images are made smaller, by averaging.

    Raises
    ------
    ValueError
        If the images have neither 1 nor 3 channels.
    """
    full_range = check_flag("full_range", full_range)
    channels, h, w = S.shape
    if channels not in (1, 3):
        raise ValueError(f"the set has images of {channels} channels: a picture needs 1 or 3")
    notes, smaller = [], None
    if max(h, w) > most_side:
        smaller = (max(1, h * most_side // max(h, w)), max(1, w * most_side // max(h, w)))
        notes.append(f"each image is made smaller, from {w} × {h} to {smaller[1]} × {smaller[0]} pixels")
        h, w = smaller
    C = min(S.n_classes, MOST)
    rows = min(max(S.counts[:C]), MOST, max(1, most_pixels // (C * h * w)))
    if S.n_classes > C:
        notes.append(f"the first {C} of {S.n_classes} classes are shown")
    if max(S.counts[:C]) > rows:
        notes.append(f"{rows} of up to {max(S.counts[:C])} images of each class are shown")
    gap = 2 * max(1, w // 28)  # half of it left and right of each image, so that columns are equally wide
    levels = np.zeros((rows * (h + gap) - gap, C * (w + gap), channels), np.uint8)
    gaps = np.ones(levels.shape[:2], bool)
    pixels = S.pixels(clip=False)
    low, high = (pixels.min().item(), pixels.max().item()) if full_range else (0.0, 1.0)
    starts = accumulate(S.counts, initial=0)
    for c, (start, n) in enumerate(zip(starts, S.counts[:C], strict=False)):
        some = ((pixels[start : start + min(rows, n)].float().cpu() - low) / (high - low or 1)).clamp(0, 1)
        some = some if smaller is None else F.interpolate(some, smaller, mode="area")
        left = c * (w + gap) + gap // 2
        for j, image in enumerate((some * 255).round().byte().permute(0, 2, 3, 1).numpy()):
            place = np.s_[j * (h + gap) : j * (h + gap) + h, left : left + w]
            levels[place], gaps[place] = image, False
    return Grid(levels, gaps, C, max(1, SIDE // max(h, w)), low, high, notes)


def as_picture(S: SyntheticSet, full_range: bool = False) -> Any:
    """`SyntheticSet.picture`."""
    Image, ImageDraw = require("PIL.Image", "data"), require("PIL.ImageDraw", "data")
    shown = grid(S, full_range)
    for note in shown.notes:
        log.warning("in the picture %s", note)
    white = np.where(shown.gaps[..., None], np.uint8(255), shown.levels)
    sheet = as_image(white)
    sheet = sheet.resize((sheet.width * shown.times, sheet.height * shown.times), Image.Resampling.NEAREST)
    above = LETTERS + 8
    whole = Image.new("RGB", (sheet.width, sheet.height + above), "white")
    whole.paste(sheet, (0, above))
    draw, width = ImageDraw.Draw(whole), sheet.width / shown.columns
    font, names = _font(S.classes[: shown.columns])
    for c, name in enumerate(names):
        text = _fitting(name, width - 4, font)
        left = c * width + (width - font.getlength(text)) / 2
        draw.text((left, 3), text, fill="black", font=font)
    return whole


def _font(names: Sequence[str]) -> tuple[Any, list[str]]:
    """A font of Pillow, and these names in letters that it has.

    Pillow's own font has ASCII only. With it the same names give the same picture on every machine.
    """
    fonts = require("PIL.ImageFont", "data")
    plain = [" ".join(name.split())[:100] for name in names]
    if not all(name.isascii() for name in plain):
        for file in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"):
            with suppress(OSError, ImportError):
                return fonts.truetype(file, LETTERS), plain
    plain = [name.encode("ascii", "replace").decode() for name in plain]
    try:
        return fonts.load_default(LETTERS), plain
    except (TypeError, OSError, ImportError):  # Pillow before 10.1, or without FreeType
        return fonts.load_default(), plain


def _fitting(text: str, width: float, font: Any) -> str:
    """A text, cut to this width in pixels."""
    kept = text
    while kept and font.getlength(kept if kept == text else f"{kept}..") > width:
        kept = kept[:-1]
    return kept if kept == text else f"{kept}.."


def write_picture(S: SyntheticSet, path: str | os.PathLike, full_range: bool = False) -> Path:
    """Write `as_picture` as a PNG file, atomically."""
    path = file_to_write(path, ".png")
    write_atomically(path, png_bytes(as_picture(S, full_range)))
    return path


def as_html(S: SyntheticSet, full_range: bool = False) -> str:
    """The picture as HTML that needs nothing else, with the class names above and some facts below.

    Gaps are transparent and letters have the colour of the page, so it fits dark and light pages.
    """
    require("PIL.Image", "data")
    shown = grid(S, full_range, IN_A_NOTEBOOK, THUMBNAIL)
    sheet = as_image(shown.levels)
    sheet.putalpha(as_image(np.where(shown.gaps, 0, 255).astype(np.uint8)[..., None]))
    address = "data:image/png;base64," + base64.b64encode(png_bytes(sheet)).decode()
    names = "".join(
        f'<span title="{html.escape(name)}" style="overflow:hidden;text-overflow:ellipsis;white-space:nowrap">'
        f"{html.escape(name)}</span>"
        for name in S.classes[: shown.columns]
    )
    said = [S.summary]
    accuracy = getattr(S, "accuracy", None)
    if accuracy is not None:
        said.append(f"accuracy of networks trained on it: {accuracy}")
    if full_range:
        said.append(f"black is {shown.low:.2f} and white is {shown.high:.2f}")
    elif S.outside:
        said.append(f"the picture clips the {share(S.outside)} of the pixels that lie outside [0, 1]")
    said += shown.notes
    below = " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in said)
    alt = f"{shown.columns} columns of images, one for each class: {', '.join(S.classes[: shown.columns])}"
    look = "display:block;width:100%;height:auto;max-width:none;margin:2px 0;image-rendering:"
    return (
        f'<figure style="margin:0;width:{sheet.width * shown.times}px;max-width:100%;color:inherit">'
        f'<div aria-hidden="true" style="display:grid;grid-template-columns:repeat({shown.columns},minmax(0,1fr));'
        f'text-align:center;font-size:12px;line-height:1.4">{names}</div>'
        f'<img alt="{html.escape(alt)}" style="{look}{"pixelated" if shown.times > 1 else "auto"}" src="{address}">'
        f'<figcaption style="font-size:12px;line-height:1.4;text-align:left">{html.escape(below)}</figcaption>'
        "</figure>"
    )


def display(S: SyntheticSet, full_range: bool = False) -> None:
    """Show the picture in the notebook that runs this code.

    Raises
    ------
    ValueError
        If there is none.
    """
    IPython = sys.modules.get("IPython")
    shell = IPython.get_ipython() if IPython else None
    if shell is None or type(shell).__name__ == "TerminalInteractiveShell":
        raise ValueError("only a notebook can show pictures: give a path for a PNG file, as in S.show('set.png')")
    from IPython.display import display as show_in_cell

    show_in_cell({"text/html": as_html(S, full_range), "text/plain": repr(S)}, raw=True)
