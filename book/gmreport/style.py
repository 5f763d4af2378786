"""One look for everything the pages show: colours, figure style, pictures with alternative text, source code."""

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

# One colour per method, on every page. Paul Tol's "muted" scheme, made to stay apart under colour blindness.
COLOURS = {
    "random": "#8C8C8C", "herding": "#999933", "DC": "#332288", "Inter": "#44AA99", "Interleaved": "#88CCEE",
    "M": "#117733", "MD": "#CC6677", "MDO": "#AA4499", "MDA": "#882255",
}  # fmt: skip
OTHER_COLOUR = "#555555"  # a method of the reader's own

# The font ships with matplotlib, so a figure looks the same on every machine.
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 150, "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 11, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def use_style() -> None:
    """Give every figure drawn after this call the report's one style."""
    sns.set_theme(style="whitegrid", rc=STYLE)


def colour(method: str) -> str:
    """The method's colour as "#RRGGBB"; grey for a name that the paper does not have."""
    return COLOURS.get(method, OTHER_COLOUR)


def method_order(methods: Iterable[str]) -> list[str]:
    """Each method once: the paper's in the order of its tables, then others in order of appearance."""
    seen = list(dict.fromkeys(methods))
    return [m for m in COLOURS if m in seen] + [m for m in seen if m not in COLOURS]


def counted(n: int, what: str) -> str:
    """ "1 set", "3 sets"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def per_class(ipc: int) -> str:
    return f"{ipc} image{'' if ipc == 1 else 's'} per class"


def png(fig: Figure) -> bytes:
    """The figure as PNG; it is closed, so that no notebook front end shows it a second time."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"], bbox_inches="tight")
    plt.close(fig)
    return buffer.getvalue()


def img(png: bytes, alt: str) -> str:
    source = base64.b64encode(png).decode()
    return f'<img class="gm-card" alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'


def show(fig: Figure, alt: str) -> None:
    """Display a figure as an image with alternative text, on a card that stays white in dark mode.

    The figure is closed.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows.")
    display({"text/html": img(png(fig), alt), "text/plain": alt}, raw=True)


def source(*functions) -> Markdown:
    """The source of these functions, to stand beside their equation."""
    return Markdown("```python\n" + "\n\n".join(inspect.getsource(f).rstrip() for f in functions) + "\n```")
