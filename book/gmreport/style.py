"""The common look of the pages: colours, figure style, pictures with alternative text, source code.

Names come from files and callers, and may hold anything. So they are shown through `md` in Markdown and `in_figure`
in a figure. HTML is made with ``html.escape`` in `Table`, `Slider` and `img` only.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from gmlib.runs.overview import in_markdown

md = in_markdown  # a short name, since every name on a page goes through it

# Each colour is dark enough to be read on white (4.5:1). In a page it is a CSS variable, which dark mode replaces by
# a light one (gmlib.css). The hues follow Paul Tol's "muted" scheme, which colour-blind readers can tell apart.
COLOURS = {
    "random": "#6b6b6b", "herding": "#76761a", "DC": "#332288", "Inter": "#1b7f6e", "Interleaved": "#1f78a8",
    "M": "#117733", "MD": "#b8475c", "MDO": "#aa4499", "MDA": "#882255",
}  # fmt: skip
OTHER_COLOUR = "#555555"  # any other method
INK, MUTED, GRID, PAPER = "#12161c", "#5a6472", "#d4d8dd", "#fefefd"  # letters and lines, less of it, grid, the page
INTRA, INTER = "#7a4a00", "#0a66a8"  # the two terms of Eq. 5, in equations, code and figures
HUES = ("#0f5fa6", "#b04a00", "#0d7a5f", "#8a3f8f", "#7a6400", "#a3324a")  # other lines
LONGEST = 40  # characters of a name in a figure

# Colour in a figure -> what a page takes in its place.
PAINT = (
    {shade: f"var(--gm-{name}, {shade})" for name, shade in COLOURS.items()}
    | {shade: f"var(--gm-hue-{i}, {shade})" for i, shade in enumerate(HUES, 1)}
    | {INTRA: f"var(--gm-intra, {INTRA})", INTER: f"var(--gm-inter, {INTER})"}
    | {OTHER_COLOUR: f"var(--gm-other, {OTHER_COLOUR})", INK: "currentColor", "#000000": "currentColor"}
    | {
        MUTED: f"var(--pst-color-text-muted, {MUTED})",
        GRID: f"var(--gm-grid, {GRID})",
        PAPER: f"var(--pst-color-background, {PAPER})",
    }
)

# matplotlib contains this font, so a figure is laid out in the same way on every machine. Pages show it in their own.
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 150, "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 10, "legend.frameon": False,
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "figure.facecolor": "none", "savefig.facecolor": "none", "axes.facecolor": "none", "axes.edgecolor": GRID,
    "grid.color": GRID, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def use_style() -> None:
    """Draw all later figures in the style of the report. In Jupyter, show outputs in it and let them move too."""
    sns.set_theme(style="whitegrid", rc=STYLE)
    # Only a Jupyter server names its session. The pages of the report link their style sheets and scripts themselves.
    if "JPY_SESSION_NAME" in os.environ and (sheet := jupyter_sheet()):
        display(HTML(sheet + jupyter_script()))


_SHEETS = Path(__file__).parents[1] / "_static"
# What the theme of the report calls its colours, and what Jupyter calls them.
_JUPYTER_COLOURS = {
    "text-base": "content-font-color1", "text-muted": "content-font-color2", "link": "content-link-color",
    "background": "layout-color0", "surface": "layout-color2", "border": "border-color1", "primary": "brand-color1",
}  # fmt: skip

# Jupyter lays out each cell by itself, so figures cannot be counted through the page. A cell is narrower than a page,
# and every other row is shaded.
_JUPYTER_RULES = """
:is([class^="gm-"], [class*=" gm-"]), :is([class^="gm-"], [class*=" gm-"]) * { box-sizing: border-box; }
.gm-figure figcaption.gm-numbered::before { content: none; }
.gm-forest .gm-plot { width: 25%; min-width: 4rem; }
.gm-forest .gm-number { white-space: normal; }
.gm-forest .gm-number small { white-space: nowrap; }
.gm-scroll { position: relative; } /* words for readers that speak do not widen the output */
:is(.gm-table, .gm-forest) tbody tr { background: none; }
"""


def jupyter_sheet() -> str:
    """The style sheets of the report's outputs as one HTML element for a notebook in Jupyter.

    Returns
    -------
    str
        Empty where the sheets are not at hand, as in an installed copy.
    """
    sheets = sorted(_SHEETS.glob("*.css"))
    if not sheets:
        return ""
    rules = "\n".join(sheet.read_text("utf-8") for sheet in sheets if sheet.stem not in {"page", "print", "front"})
    rules = rules.replace('html[data-theme="dark"]', '&[data-jp-theme-light="false"]').replace(":root", "&")
    colours = "".join(f"--pst-color-{ours}: var(--jp-{theirs});" for ours, theirs in _JUPYTER_COLOURS.items())
    # The last part matches nothing. It makes each rule weigh more than Jupyter's own.
    return f"<style>\n:is(body, .gm-a .gm-b .gm-c) {{\n{colours}\n{rules}\n{_JUPYTER_RULES}}}\n</style>"


# What each script of a notebook's outputs waits for.
_WAITING = ".gm-session:not(.gm-ready), .gm-sessions:not(.gm-ready), figure.gm-contours:not(.gm-ready)"


def jupyter_script() -> str:
    """The scripts of the notebooks' outputs as one HTML element for a notebook in Jupyter.

    A page runs them once. In Jupyter they run whenever an output appears that waits for them.
    """
    scripts = "\n".join((_SHEETS / f"{name}.js").read_text("utf-8") for name in ("session", "contours"))
    return f"""<script>
(() => {{
const start = () => {{
{scripts}
}};
// In a figure the arrow keys are its own, not Jupyter's.
const keep = (event) => {{ if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); }};
const look = () => {{
  const boxes = document.querySelectorAll({json.dumps(_WAITING)});
  for (const box of boxes) box.addEventListener("keydown", keep);
  if (boxes.length) start();
}};
new MutationObserver(look).observe(document.body, {{ childList: true, subtree: true }});
look();
}})();
</script>"""


def colour(method: str) -> str:
    """The colour of a method as ``"#RRGGBB"``. Methods that are not in the paper are grey."""
    return COLOURS.get(method, OTHER_COLOUR)


# Outcome -> sign, and the class of its colour in the style sheet. A sign always comes with its word.
SIGNS = {
    "reproduced": ("✓", "yes"),
    "held": ("✓", "yes"),
    "by counting": ("✓", "yes"),
    "differs": ("✗", "no"),
    "reversed": ("✗", "no"),
    "not decided": ("?", "open"),
    "too few sets": ("…", "waits"),
    "too few networks": ("…", "waits"),
    "another budget": ("~", "waits"),
    "not run": ("–", "waits"),
    "not applicable": ("∅", "waits"),
}


def sign(outcome: str, word: str | None = None) -> str:
    """HTML of an outcome: its sign and its word. ``word`` replaces the word that is shown."""
    mark, tone = SIGNS[outcome]
    return f'<span class="gm-sign gm-{tone}"><b aria-hidden="true">{mark}</b> {html.escape(word or outcome)}</span>'


def display_name(method: str) -> str:
    """The one name of a method on all pages.

    A distance alone names the method that takes it with multi-level gradients and fixed steps, as in Table 2:
    "multi,d1+100*d4,fixed" is "d1 + 100 d4".
    """
    preset, at, source = method.partition("@")
    what, _, rest = preset.partition(",")
    distance, _, where = rest.partition(",")
    if what == "multi" and where == "fixed":
        preset = distance_name(distance)
    else:
        preset = {"random": "random images", "intra,d1,overfit": "DC until overfitting"}.get(preset, preset)
    return f"{preset} from {source}" if at else preset


def distance_name(expression: str) -> str:
    """The one name of a distance on all pages: "d1+100*d4" is "d1 + 100 d4"."""
    return " + ".join(term.strip().replace("*", " ") for term in expression.split("+"))


def method_order(methods: Iterable[str]) -> list[str]:
    """Sort methods and drop duplicates: first the paper's in the order of its tables, then others as they come."""
    seen = list(dict.fromkeys(methods))
    return [m for m in COLOURS if m in seen] + [m for m in seen if m not in COLOURS]


def counted(n: int, what: str) -> str:
    """A number with its noun, such as "1 set" or "3 sets"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words as a list, such as "a, b and c"."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


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
    fig.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"], bbox_inches="tight", facecolor="white")
    plt.close(fig)
    return buffer.getvalue()


def img(png: bytes, alt: str) -> str:
    """An HTML image that contains its data."""
    source = base64.b64encode(png).decode()
    return f'<img class="gm-card" alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, and a real minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def source(*functions) -> Markdown:
    """The source code of functions, as a code block."""
    return Markdown("```python\n" + "\n\n".join(inspect.getsource(f).rstrip() for f in functions) + "\n```")
