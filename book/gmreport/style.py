"""The common look of the pages: colours, figure style, pictures with alternative text, source code.

Names come from files and callers, and may hold anything. So they are shown through `md` in Markdown and `in_figure`
in a figure. HTML is made with ``html.escape`` in `Table`, `Slider` and `img` only.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
from collections.abc import Iterable

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from gmlib.runs.overview import in_markdown

md = in_markdown  # a short name, since every name on a page goes through it

# Paul Tol's "muted" scheme, which colour-blind readers can tell apart.
COLOURS = {
    "random": "#8C8C8C", "herding": "#999933", "DC": "#332288", "Inter": "#44AA99", "Interleaved": "#88CCEE",
    "M": "#117733", "MD": "#CC6677", "MDO": "#AA4499", "MDA": "#882255",
}  # fmt: skip
OTHER_COLOUR = "#555555"  # any other method
LONGEST = 40  # characters of a name in a figure

# matplotlib contains this font, so a figure looks the same on every machine.
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 150, "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 11, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def use_style() -> None:
    """Draw all later figures in the style of the report."""
    sns.set_theme(style="whitegrid", rc=STYLE)


def colour(method: str) -> str:
    """The colour of a method as ``"#RRGGBB"``. Methods that are not in the paper are grey."""
    return COLOURS.get(method, OTHER_COLOUR)


def method_order(methods: Iterable[str]) -> list[str]:
    """Sort methods and drop duplicates: first the paper's in the order of its tables, then others as they come."""
    seen = list(dict.fromkeys(methods))
    return [m for m in COLOURS if m in seen] + [m for m in seen if m not in COLOURS]


def counted(n: int, what: str) -> str:
    """A number with its noun, such as "1 set" or "3 sets"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def per_class(ipc: int) -> str:
    """Such as "10 images per class"."""
    return f"{counted(ipc, 'image')} per class"


def in_figure(text: object, longest: int = LONGEST) -> str:
    """A name in a figure, so that it is shown as it is: matplotlib reads text between two $ as maths.

    The end of a long one is left out, because a figure has no room for it.
    """
    line = " ".join(str(text).split())
    return (line if len(line) <= longest else f"{line[:longest]}…").replace("$", r"\$")


def png(fig: Figure) -> bytes:
    """The figure as PNG. It is closed, so that a notebook does not show it again."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"], bbox_inches="tight")
    plt.close(fig)
    return buffer.getvalue()


def img(png: bytes, alt: str) -> str:
    """An HTML image that contains its data."""
    source = base64.b64encode(png).decode()
    return f'<img class="gm-card" alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'


def show(fig: Figure, alt: str) -> None:
    """Display a figure with alternative text, on a card that is white in dark mode too.

    Parameters
    ----------
    fig : Figure
        It is closed.
    alt : str
        Says what the figure shows.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty: describe the figure in a sentence")
    display({"text/html": img(png(fig), alt), "text/plain": alt}, raw=True)


def source(*functions) -> Markdown:
    """The source code of functions, as a code block."""
    return Markdown("```python\n" + "\n\n".join(inspect.getsource(f).rstrip() for f in functions) + "\n```")
