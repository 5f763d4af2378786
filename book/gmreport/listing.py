"""Algorithm 1 as the paper prints it, beside the lines of the library that are it.

The comments ``# 2:``, ``# 5-6:``, ``# 10`` in the source say which lines of the print they stand at.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from gmlib import how, lines, what, where
from gmlib.algorithm import State, algorithm_1
from gmlib.draws import Draws
from gmlib.speed import class_gradients
from gmlib.speed.training import train_one_pass

MARK = re.compile(r"#\s*(\d+)(?:-(\d+))?(?::|$)")
API_PAGE = {"what": "method", "how": "method", "where": "method", "speed": "speed"}  # of other modules: algorithm


class Line(NamedTuple):
    """A numbered line of the print.

    Attributes
    ----------
    depth : int
        The number of loops around it.
    text : str
        The paper's words in HTML, with maths in TeX. The class ``gm-new`` marks what the paper adds to its baseline.
    why : str
        Why the code is the print, in HTML.
    shown : tuple of callables
        Functions behind the line whose source is shown below it.
    linked : tuple of callables
        Functions that are linked only.
    equations : tuple of (int, callable)
        Each equation in this line by its number, and the function that is it.
    """

    depth: int
    text: str
    why: str = ""
    shown: tuple[Callable, ...] = ()
    linked: tuple[Callable, ...] = ()
    equations: tuple[tuple[int, Callable], ...] = ()


PRINT = {
    1: Line(
        0,
        r"Initialize \(\mathcal{S}_0\) following Gaussian distribution;",
        r"The state already holds \(\mathcal{S}_0\). Its noise is in normalised pixels. "
        'With <code>init="real"</code> it starts as real images.',
        (lines.initial,),
    ),
    2: Line(
        0,
        r"<b>for</b> \(k = 0, 1, \dots, K - 1\) <b>do</b> "
        "<i>// outer loop: explore with different initialization</i>",
        r"The loop starts at the state's \(k\), so that a run can go on from a checkpoint.",
    ),
    3: Line(
        1,
        r"Initialize model parameters \(\theta_0 \sim P_{\theta_0}\);",
        r"The recipe's seed and \(k\) determine the weights. The optimiser of \(\theta\) starts without momentum.",
        linked=(Draws.network, lines.fresh_network, State.start),
    ),
    4: Line(
        1,
        r"<b>for</b> \(t = 0, 1, \dots, T - 1\) <b>do</b> <i>// inner loop</i>",
        r"Each \((k, t)\) has random streams of its own. "
        "Runs that differ only in <code>where</code> get the same networks and the same real batches.",
        linked=(lines.streams_of,),
    ),
    5: Line(
        2,
        r"<b>for</b> \(c = 0, 1, \dots, C - 1\) <b>do</b>",
        r"One call draws the batches of all classes: <code>choose_images</code> chooses the real images, and "
        r"<code>gather</code> takes them. \(\mathcal{S}\) is small, so its batches are all images of a class. "
        r"The loop around it is Eq. 10: \(\zeta_{\mathcal{S}}\) updates of \(\mathcal{S}\) at each "
        r"\(\theta\). The paper takes \(\zeta_{\mathcal{S}} = 1\).",
        (lines.choose_images,),
        (Draws.batches, lines.gather),
    ),
    6: Line(
        3,
        r"Sample mini-batches \(B_c^{\mathcal{S}_t} \sim \mathcal{S}_t\), \(B_c^{\mathcal{T}} \sim \mathcal{T}\) "
        r"in the \(c\)-th class;",
    ),
    7: Line(
        3,
        r"Compute gradients \(g_c^{\mathcal{S}_t} = \nabla_{\theta_t} L(B_c^{\mathcal{S}_t}, \theta_t)\), "
        r"\(g_c^{\mathcal{T}} = \nabla_{\theta_t} L(B_c^{\mathcal{T}}, \theta_t)\);",
        r"The real gradients come first. At \(t = 0\) they do not depend on \(\mathcal{S}\), so runs that share a "
        r"seed compute them once, and <code>draws</code> keeps them. <code>match</code> takes those of "
        r"\(\mathcal{S}\). Line 9 differentiates them, so their graph is kept: <code>create_graph=True</code>.",
        (lines.real_gradients, lines.gradients),
        (Draws.real_gradients, class_gradients),
    ),
    8: Line(
        2,
        r"\(\begin{aligned}\mathrm{loss} = {} & \sum_{c=0}^{C-1} "
        r"\class{gm-new}{D}\big(g_c^{\mathcal{S}_t}, g_c^{\mathcal{T}}\big) \\[-0.3em]"
        r"& \class{gm-new}{{} + \lambda D\Big(\tfrac{1}{C} \sum_{c=0}^{C-1} g_c^{\mathcal{S}_t},"
        r"\, \tfrac{1}{C} \sum_{c=0}^{C-1} g_c^{\mathcal{T}}\Big)};\end{aligned}\)",
        r"The first sum is Eq. 4, both terms are Eq. 6. The gradient of all classes together is a mean of class "
        r"gradients (Eq. 5), so it needs no further pass. \(D\) adds up a distance over the layers (Eq. 7): the "
        r"angle (Eq. 8), or angle and magnitude (Eq. 9). \(\lambda\) is \(C\) unless the recipe says otherwise. "
        r"<code>match</code> runs line 7 for \(\mathcal{S}\) and line 8 as one step.",
        (lines.matching_loss, what.multi),
        (lines.match,),
        ((4, what.intra), (5, what.union), (6, what.multi), (7, how.distance), (8, how.d1), (9, how.improved)),
    ),
    9: Line(
        2,
        r"\(\mathcal{S}_{t+1} = \mathcal{S}_t - \eta_{\mathcal{S}} \nabla_{\mathcal{S}_t} \mathrm{loss}\);",
        r"This is Eq. 3. <code>S.grad</code> holds the gradient of line 8. The optimiser is SGD with momentum 0.5, "
        "as in the authors' scripts. The print has no momentum.",
        linked=(State,),
        equations=((3, algorithm_1),),
    ),
    10: Line(
        2,
        r"\(\theta_t^0 = \theta_t\);",
        r"<code>ThetaPath</code> counts the steps of \(\theta\) that follow. "
        r"After the last \(t\) there are none, because line 3 draws \(\theta\) anew.",
        linked=(lines.ThetaPath,),
    ),
    11: Line(
        2,
        r"<b>for</b> \(i = 0, 1, \dots, \class{gm-new}{\zeta_\theta(t)} - 1\) <b>do</b> "
        r'<i class="gm-new">// update \(\theta\) with adaptive learning steps</i>',
        r"<code>steps</code> is \(\zeta_\theta(t)\). For the paper's method it is Eq. 12. "
        r"Where the recipe updates \(\theta\) until overfitting, <code>path.step_overfits()</code> ends the loop.",
        (where.adaptive,),
        equations=((11, where.steps), (12, where.adaptive)),
    ),
    12: Line(
        3,
        r"\(\theta_t^{i+1} = \theta_t^i - \eta_\theta \nabla_{\theta_t^i} L(\mathcal{S}_{t+1}, \theta_t^i)\);",
        r"One step is one pass over \(\mathcal{S}\) in mini-batches of 256 images. "
        r"Up to 256 images that is the single gradient step of the print, with momentum 0.5. "
        r"<code>detach</code> keeps \(\mathcal{S}\) out of its graph.",
        linked=(train_one_pass,),
    ),
    13: Line(
        2,
        r"\(\theta_{t+1} = \theta_t^{i+1}\);",
        r"\(\theta\) is changed in place, so this needs no assignment. The state moves on to the next \((k, t)\). "
        "Then the generator yields an update and waits for its caller.",
    ),
}


class Part(NamedTuple):
    """Code, and the lines of the print that it is. What comes before the first of them has no numbers."""

    numbers: list[int]
    code: str


def source_of(function: Callable) -> str:
    """The source of a function without its docstring and without empty lines."""
    source = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(source).body[0]
    code = source.splitlines()
    if ast.get_docstring(tree) is not None:
        del code[tree.body[0].lineno - 1 : tree.body[0].end_lineno]
    return "\n".join(line for line in code if line.strip()) + "\n"


def cut(source: str) -> list[Part]:
    """Cut the source of a function at its numbered comments.

    A comment behind code starts a part at the first line of its statement. The head of a loop or condition right
    above belongs to the part too, if it has no number of its own.

    Raises
    ------
    ValueError
        If the numbers are not those of the print, each once and in order.
    """
    code = source.splitlines()
    numbers = numbered(source)
    found = [n for part in numbers.values() for n in part]
    if found != list(PRINT):
        wrong = sorted(set(PRINT) ^ set(found)) or found
        raise ValueError(
            f"the numbered comments are not the lines 1 to {len(PRINT)} of the print, each once and in order: "
            f"look for {', '.join(map(str, wrong))} and write a comment like '# 9: ...' at its code"
        )
    simple, compound = statements(source)
    starts = []
    for row in numbers:
        start = row if code[row - 1].lstrip().startswith("#") else (compound.get(row) or simple[row]).start
        above = compound.get(start - 1, range(0))
        if above and not any(line in numbers for line in range(above.start, start)):
            start = above.start
        starts.append(start)
    edges = [1, *starts, len(code) + 1]
    texts = ["\n".join(code[a - 1 : b - 1]) for a, b in pairwise(edges)]
    return [Part(*part) for part in zip([[], *numbers.values()], texts, strict=True)]


def numbered(source: str) -> dict[int, list[int]]:
    """{line of the source: lines of the print that its comment names}."""
    comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    marks = [(t.start[0], MARK.match(t.string)) for t in comments]
    return {row: list(range(int(m[1]), int(m[2] or m[1]) + 1)) for row, m in marks if m}


def statements(source: str) -> tuple[dict[int, range], dict[int, range]]:
    """{line of the source: lines of its statement}, for simple statements and for heads of loops and conditions."""
    simple, compound = {}, {}
    for node in ast.walk(ast.parse(source).body[0]):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef):
            body = getattr(node, "body", None)
            rows = range(node.lineno, body[0].lineno if body else node.end_lineno + 1)
            (compound if body else simple).update(dict.fromkeys(rows, rows))
    return simple, compound


class Listing:
    """The print on the left and the code on the right, as HTML for a page at the root of the book.

    Parameters
    ----------
    loop : callable
        The function with the numbered comments.
    """

    def __init__(self, loop: Callable = algorithm_1):
        self.loop = loop
        self.parts = cut(source_of(loop))

    def _repr_html_(self) -> str:
        rows = [row(part.numbers, part.code, self.loop) for part in self.parts]
        return f'<div class="gm-listing mathjax_process">{"".join(rows)}</div>'


def row(numbers: list[int], code: str, loop: Callable) -> str:
    """One row: lines of the print, their code with the functions that it calls, and why they are the same."""
    printed = [PRINT[n] for n in numbers]
    text = "".join(line_html(n, PRINT[n]) for n in numbers)
    shown = [f for line in printed for f in line.shown]
    linked = [f for line in printed for f in line.linked]
    blocks = [code_html(code), *(f"<p>{api_link(f)}</p>{code_html(source_of(f))}" for f in shown)]
    if not numbers:
        text = line_html(None, Line(0, r"<b>Input:</b> original training set \(\mathcal{T}\)"))
        blocks.insert(0, f"<p>{api_link(loop)}</p>")
    elif numbers[-1] == max(PRINT):
        text += line_html(None, Line(0, r"<b>Output:</b> synthetic training set \(\mathcal{S}\)"))
    if linked:
        blocks.append(f"<p>See also {', '.join(map(api_link, linked))}.</p>")
    why = "".join(f"<p>{line.why}</p>" for line in printed if line.why)
    return (
        f'<div class="gm-row"><div class="gm-print">{text}</div><div class="gm-code">{"".join(blocks)}</div>'
        f'<div class="gm-why">{why}</div></div>'
    )


def line_html(number: int | None, line: Line) -> str:
    """A line of the print, with its number as a link to itself and the numbers of its equations."""
    anchor = f'<a class="gm-number" id="line-{number}" href="#line-{number}">{number}</a>' if number else ""
    equations = ", ".join(api_link(f, str(n)) for n, f in line.equations)
    equations = f"<small>Eq. {equations}</small>" if equations else ""
    return f'<p style="--depth: {line.depth}">{anchor}<span>{line.text}</span>{equations}</p>'


def code_html(code: str) -> str:
    """Highlighted Python. Each line is a span that knows its indentation and may wrap at brackets and dots."""
    spans = []
    coloured = highlight(code, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    coloured = coloured.replace("(</span>", "(</span><wbr>").replace('<span class="o">.', '<wbr><span class="o">.')
    for line, html in zip(code.rstrip().split("\n"), coloured.rstrip().split("\n"), strict=True):
        spaces = len(line) - len(line.lstrip())
        indent = f'<span class="gm-indent">{" " * spaces}</span>'
        spans.append(f'<span style="--indent: {spaces}">{indent}{html[spaces:]}</span>')
    return f'<div class="highlight"><pre>{"".join(spans)}</pre></div>'


def api_link(function: Callable, text: str | None = None) -> str:
    """A link to the function in the API reference."""
    module, name = function.__module__, function.__qualname__
    page = API_PAGE.get(module.split(".")[1], "algorithm")
    return f'<a href="api/{page}.html#{module}.{name}">{text or f"<code>{module}.{name}</code>"}</a>'
