"""What chapters share: the answer at the top, and equations beside the functions that are them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from IPython.display import HTML

from gmlib.coresets import CORESETS
from gmlib.recipe import BUDGETS

from .listing import code_html, source_of
from .matrix import claims_in_words
from .orders import ORDERINGS, ordering_cells, orderings, outcome_of
from .paper import LACKS, NO_RUN
from .style import sign

if TYPE_CHECKING:
    from .front import Answer


class Pair(NamedTuple):
    """An equation and the functions that are it.

    Attributes
    ----------
    tex : str
        Without delimiters. ``\\class{gm-intra}{...}`` gives a term the colour of a class of the style sheets.
    functions : sequence of callables
        Their source is shown without docstrings.
    number : int, optional
        The paper's number. An equation of our own has none.
    """

    tex: str
    functions: Sequence[Callable]
    number: int | None = None


def equation_and_code(*pairs: Pair, colours: dict[str, str] | None = None) -> HTML:
    """Equations on the left and their code on the right, or below each other where the page is narrow.

    Parameters
    ----------
    *pairs : Pair
        A plain tuple does as well.
    colours : dict, optional
        A name in the code -> the class of its colour, such as {"intra": "gm-intra"}.
    """
    rows = "".join(_row(Pair(*pair), colours or {}) for pair in pairs)
    return HTML(f'<div class="gm-pairs mathjax_process">{rows}</div>')


def _row(pair: Pair, colours: dict[str, str]) -> str:
    code = "".join(code_html(source_of(function)) for function in pair.functions)
    for name, look in colours.items():
        for kind in ("n", "nf"):  # pygments: a name, the name of a function
            code = code.replace(f'<span class="{kind}">{name}</span>', f'<span class="{kind} {look}">{name}</span>')
    tag = "" if pair.number is None else rf"\tag{{{pair.number}}}"
    mark = "" if pair.number is None else f' id="eq-{pair.number}"'
    return (
        f'<div class="gm-pair"{mark}><div class="gm-equation">\\[{html.escape(pair.tex)}{tag}\\]</div>'
        f'<div class="gm-lines">{code}</div></div>'
    )


def answer_box(results: pd.DataFrame, ids: Sequence[str], answer: Answer | None = None) -> HTML:
    """The verdict on some claims of the paper, a line each, with the differences that decide.

    Parameters
    ----------
    results
        Long form. May have no rows.
    ids
        Of ORDERINGS.
    answer
        What the first page says about this chapter (`answer_to`). It comes first.

    Raises
    ------
    ValueError
        If an id is unknown.
    """
    known = {o.id: o for o in ORDERINGS}
    if unknown := [name for name in ids if name not in known]:
        raise ValueError(f"unknown orderings {unknown}: there are {', '.join(known)}")
    every, counted = ordering_cells(results), orderings(results)
    lines = []
    for name in ids:
        outcome, word = outcome_of(known[name], every[every["id"] == name])
        run = counted[(counted["id"] == name) & (counted["run"] > 0)]
        why = "; ".join(
            f"{deciding}{'' if budget == 'paper' else f', {budget} budget'}"
            for budget, each in zip(run["budget"], run["deciding"], strict=True)
            for deciding in each
        )
        lines.append((outcome, word, known[name].sentence, why))
    return _box(lines, answer)


def claims_box(*ids: str, live: tuple[str, str] | None = None, answer: Answer | None = None) -> HTML:
    """The stored verdict on some claims, a line each, with what decides. It is the verdict of all other pages.

    Parameters
    ----------
    *ids
        Of `claims_in_words`.
    live
        What the page itself measured, and how. It is not judged.
    answer
        As in `answer_box`.

    Raises
    ------
    ValueError
        If an id is unknown.
    """
    known = {claim.id: claim for claim in claims_in_words()}
    if unknown := [name for name in ids if name not in known]:
        raise ValueError(f"unknown claims {unknown}: there are {', '.join(known)}")
    lines = []
    for claim in map(known.__getitem__, ids):
        said = {": ".join(filter(None, (cell.place, cell.ours))): cell.note for cell in claim.run}
        why = "; ".join(f"{text} ({note})" if note else text for text, note in said.items())
        lines.append((claim.outcome, claim.word, claim.sentence, why or "; ".join(_notes(claim.cells))))
    return _box([*lines, *([("another budget", "this page", *live)] if live else [])], answer)


def _notes(cells: Iterable) -> Iterable[str]:
    found = dict.fromkeys(cell.note for cell in cells if cell.note)
    partly = any(note.startswith(LACKS) for note in found)
    return [note for note in found if not (partly and note == NO_RUN)]


def _box(lines: Iterable[tuple[str, str, str, str]], answer: Answer | None = None) -> HTML:
    """An answer, and a line for each outcome, word, sentence and reason."""
    inside = ""
    if answer:
        inside = (
            f"<p>{sign(answer.outcome, answer.word)} <strong>{html.escape(answer.question)}</strong> "
            f"{html.escape(answer.sentence)} <small>{html.escape(answer.basis)}</small></p>"
        )
    for outcome, word, sentence, why in lines:
        small = f"<small>{html.escape(_with_minus(why))}.</small>" if why else ""
        end = "" if sentence.endswith("?") else "."
        inside += f"<p>{sign(outcome, word)} <strong>{html.escape(sentence)}{end}</strong> {small}</p>"
    return HTML(f'<div class="gm-answer" role="note" aria-label="The answer">{inside}</div>')


def _with_minus(text: str) -> str:
    """Numbers with a minus sign instead of a hyphen."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def longest_runs(results: pd.DataFrame, methods: Sequence[str], network: str = "convnet") -> pd.DataFrame:
    """The results of these methods; of each data set and size only those of the longest budget that compares methods.

    The longest budget comes first.

    Parameters
    ----------
    results
        Long form. May have no rows.
    methods
        Names. A cell counts if it has two condensed methods or more among them.
    network
        The trained network.
    """
    found = results[results["method"].isin(list(methods)) & (results["network"] == network)]
    chosen = []
    for _, cell in found.groupby(["dataset", "ipc"], sort=False):
        for budget in reversed(BUDGETS):
            rows = cell[cell["budget"] == budget]
            if rows.loc[~rows["method"].isin(list(CORESETS)), "method"].nunique() > 1:
                chosen.append(rows)
                break
    longest = list(reversed(BUDGETS))
    chosen.sort(key=lambda rows: longest.index(rows["budget"].iloc[0]))
    return pd.concat(chosen) if chosen else found[:0]
