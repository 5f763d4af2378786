"""How pictures become HTML: figures as inline SVG in the colours of the page, images of sets as small PNG files."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from gmlib.exchange import png_bytes

from .style import PAINT

_SVG_TEXT = {"svg.fonttype": "none", "svg.hashsalt": "gmlib"}  # letters stay letters; ids depend on the content only
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_LONG_NUMBER = re.compile(r"(-?\d+\.\d\d)\d+")


def svg(fig: Figure, hidden: bool = True, label: str = "") -> str:
    """The figure as SVG to be put into a page. It is closed.

    Colours of the report (`style.PAINT`) become CSS variables, which a page in dark mode replaces. The same figure
    gives the same bytes. All ids begin with a hash of the content, so figures of one page do not mix.

    Parameters
    ----------
    fig
        Backgrounds are transparent in the style of the report.
    hidden
        For figures whose surroundings have the text for screen readers.
    label
        That text, if not hidden.
    """
    tight = None if fig.get_layout_engine() is not None else "tight"
    buffer = io.StringIO()
    with matplotlib.rc_context(_SVG_TEXT):
        fig.savefig(buffer, format="svg", metadata=_NO_METADATA, facecolor="none", bbox_inches=tight, pad_inches=0.02)
    plt.close(fig)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)  # it would hold for the whole page
    head, body = re.match(r"<svg([^>]*)>(.*)</svg>", text, flags=re.DOTALL).groups()
    width, height = (float(number) for number in re.search(r'viewBox="0 0 (\S+) (\S+)"', head).groups())
    body = re.sub(r' (d|points|x|y|transform|width|height)="([^"]*)"', _short, body)
    body = re.sub(r' style="([^"]*)"', _painted, body)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    used = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r"<(g|defs)>\s*</\1>|<defs/>", "", re.sub(r">\s+<", "><", body.strip()))
    mark = "s" + hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{mark}", body)
    spoken = 'aria-hidden="true"' if hidden else f'role="img" aria-label="{html.escape(label)}"'
    return (
        f'<svg class="gm-svg" xmlns="http://www.w3.org/2000/svg" {spoken} viewBox="0 0 {width:g} {height:g}" '
        f'style="width:{width / 12:.4g}rem" fill="currentColor" stroke-linejoin="round">{body}</svg>'
    )


def _short(found: re.Match) -> str:
    """An attribute of places, with fewer digits and spaces: a hundredth of a point cannot be seen."""
    name, value = found.groups()
    value = _LONG_NUMBER.sub(r"\1", value)
    if name == "d":
        value = re.sub(r"\s*([MLCQZz])\s*", r"\1", value).strip()
    if name == "transform":
        value = re.sub(r"^rotate\(-?0 .*\)$", "", value)
        if not value:
            return ""
    return f' {name}="{value}"'


def _painted(found: re.Match) -> str:
    """A style attribute with the colours of the page and its font."""
    style = re.sub(r"#[0-9a-f]{6}\b", lambda c: PAINT.get(c[0], c[0]), found[1])
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    style = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)
    style = style.replace(": ", ":").replace("; ", ";").strip().strip(";")
    return f' style="{style}"' if style else ""


class Panels(list):
    """Figures side by side. They wrap where the page is narrow, and have one legend in HTML.

    Parameters
    ----------
    figures
        Each at most 3.4 inches wide, with letters of at least 9 points: then they can be read on a phone.
    legend
        (words, colour, look) of each entry, as `legend_of` returns them.
    """

    def __init__(self, figures: Sequence[Figure], legend: Sequence[tuple[str, str, str]] = ()):
        super().__init__(figures)
        self.legend = list(legend)

    @property
    def axes(self) -> list:
        """The axes of all figures."""
        return [ax for fig in self for ax in fig.axes]

    def to_html(self, alt: str) -> str:
        """Its HTML, with a text for screen readers."""
        inside = "".join(map(svg, self))
        return (
            f'<div class="gm-panels" role="img" aria-label="{html.escape(alt)}">{inside}</div>{_legend(self.legend)}'
        )


def legend_of(ax) -> list[tuple[str, str, str]]:
    """The entries of a legend for the lines on matplotlib axes: words, colour, look.

    The look is the line ("-", "--", ":", "-." or nothing) and then the marker ("o", "s", "^", ... or nothing). A
    caller may add entries with the look "bar 0.5", a bar of this opacity.
    """
    found = {}
    for handle, words in zip(*ax.get_legend_handles_labels(), strict=True):
        line = handle.lines[0] if hasattr(handle, "lines") else handle  # error bars hold their line
        dashes, marker = (str(text).replace("None", "").strip() for text in (line.get_linestyle(), line.get_marker()))
        found.setdefault(words, (matplotlib.colors.to_hex(line.get_color()), dashes + marker))
    return [(words, *look) for words, look in found.items()]


SHAPES = "os^XDvP<>*hdp"  # markers that can be told apart without their colours
_MARKERS = {
    "o": '<circle cx="14" cy="6" r="3.5"/>',
    ".": '<circle cx="14" cy="6" r="2"/>',
    "s": '<path d="M10.5 2.5h7v7h-7z"/>',
    "^": '<path d="M14 1.5l4.5 8h-9z"/>',
    "v": '<path d="M14 10.5l4.5-8h-9z"/>',
    "D": '<path d="M14 1l5 5-5 5-5-5z"/>',
    "P": '<path d="M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "<": '<path d="M9.5 6l8-4.5v9z"/>',
    ">": '<path d="M18.5 6l-8-4.5v9z"/>',
    "*": '<path d="M14 .8l1.3 3.6 3.8.1-3 2.4 1.1 3.7-3.2-2.2-3.2 2.2 1.1-3.7-3-2.4 3.8-.1z"/>',
    "h": '<path d="M14 1.5l4 2.2v4.6l-4 2.2-4-2.2v-4.6z"/>',
    "d": '<path d="M14 1l3 5-3 5-3-5z"/>',
    "p": '<path d="M14 1.5l4.5 3.3-1.7 5.3h-5.6l-1.7-5.3z"/>',
    "X": '<path d="M11 3l6 6M17 3l-6 6" stroke="currentColor" stroke-width="2.5"/>',
    "|": '<path d="M14 0v12" stroke="currentColor" stroke-width="1.5"/>',
    "": "",
}
_LINES = {
    "": "",
    "-": '<path d="M1 6h26" stroke="currentColor" stroke-width="2"/>',
    "--": '<path d="M1 6h26" stroke="currentColor" stroke-width="2" stroke-dasharray="6 3"/>',
    ":": '<path d="M1 6h26" stroke="currentColor" stroke-width="2" stroke-dasharray="2 3"/>',
    "-.": '<path d="M1 6h26" stroke="currentColor" stroke-width="2" stroke-dasharray="7 3 2 3"/>',
}


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    items = ""
    for words, shade, look in entries:
        dashes = next((line for line in ("--", "-.", "-", ":") if look.startswith(line)), "")
        if look.startswith("bar"):
            drawn = f'<path d="M1 1h26v10h-26z" opacity="{look[3:].strip() or 1}"/>'
        else:
            drawn = _LINES[dashes] + _MARKERS[look.removeprefix(dashes)]
        swatch = f'<svg viewBox="0 0 28 12" fill="currentColor" aria-hidden="true">{drawn}</svg>'
        items += f'<li><span style="color:{PAINT.get(shade, shade)}">{swatch}</span> {html.escape(words)}</li>'
    return f'<ul class="gm-key">{items}</ul>' if items else ""


@dataclass(frozen=True)
class Pictures:
    """Images of sets, a column for each class: PNG with one pixel for each pixel, and names as text.

    Attributes
    ----------
    strips : dict
        Name, which may be empty -> grid of images (height, width) or (height, width, 3) in [0, 1], from `sheet_of`.
    n_classes : int
    titles : sequence of str, optional
        Names of the classes.
    side : float
        Largest width of an image, in CSS pixels.
    """

    strips: Mapping[str, np.ndarray]
    n_classes: int
    titles: Sequence[str] | None = None
    side: float = 58

    def to_html(self, alt: str) -> str:
        """Its HTML, with a text for screen readers."""
        several = len(self.strips) > 1
        titles = "".join(f"<span>{html.escape(str(title))}</span>" for title in self.titles or ())
        long = " gm-long" if any(len(str(title)) > 3 for title in self.titles or ()) else ""
        above = f'<div class="gm-titles{long}" aria-hidden="true">{titles}</div>' if titles else ""
        strips = ""
        for name, sheet in self.strips.items():
            shown = f'<span class="gm-name">{html.escape(name)}</span>' if name else ""
            spoken = f"{name}: {alt}" if several else alt
            strips += f'{shown}<div class="gm-strip">{above}{_pixels(sheet, spoken)}</div>'
            above = ""  # once
        return (
            f'<div class="gm-pictures{" gm-named" if any(self.strips) else ""}" '
            f'style="--gm-columns:{self.n_classes};--gm-side:{self.side:g}px">{strips}</div>'
        )


def _pixels(sheet: np.ndarray, alt: str) -> str:
    """An image that contains its data. Pixels that are not a number are transparent."""
    values = np.rint(np.nan_to_num(sheet).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(values)
    hole = np.isnan(sheet) if sheet.ndim == 2 else np.isnan(sheet).any(axis=2)
    if hole.any():
        picture.putalpha(Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)))
    data = base64.b64encode(png_bytes(picture)).decode()
    return f'<img class="gm-pixels" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def content(picture: Figure | Panels | Pictures, alt: str) -> str:
    """The HTML of a figure, of panels, or of pixel pictures, with a text for screen readers."""
    return (Panels([picture]) if isinstance(picture, Figure) else picture).to_html(alt)


def show(picture: Figure | Panels | Pictures, alt: str, caption: str | None = None, *, number: bool = True) -> None:
    """Display a picture with alternative text and, if it has one, a caption.

    Parameters
    ----------
    picture
        Figures are closed.
    alt
        Says what the picture shows.
    caption
        Says how to read it: what dots, bars and whiskers are. Plain text.
    number
        Whether the caption begins with "Figure" and a number that runs through the page.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty: describe the figure in a sentence")
    below = ""
    if caption:
        below = f"<figcaption{' class=gm-numbered' if number else ''}>{html.escape(caption)}</figcaption>"
    shown = f'<figure class="gm-figure">{content(picture, alt)}{below}</figure>'
    display({"text/html": shown, "text/plain": alt}, raw=True)
