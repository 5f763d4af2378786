"""The message, the matrix of claims and the table of every number, on made-up runs."""

import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import gmreport as report
from gmlib.evaluation import Evaluation
from gmlib.runs import readback, shipped
from gmlib.runs.shipped import CondensedSet
from gmreport import paper
from gmreport.cards import DOWNLOADS, picture
from gmreport.explorer import StoredRun
from gmreport.matrix import Mark, drawing

NOTHING = pd.DataFrame(columns=readback.COLUMNS)
BAD = '<b onclick="x">&'


def runs(method, set_means, *, dataset="MNIST", ipc=1, budget="paper", network="convnet", networks=10):
    rows = [
        (dataset, ipc, method, budget, seed, network, net, mean + (net % 2) / 5 - 0.1)
        for seed, mean in enumerate(set_means)
        for net in range(networks)
    ]
    return pd.DataFrame(rows, columns=readback.COLUMNS)


class Text(HTMLParser):
    """The text of a page, the attributes of all elements, and whether every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.words, self.elements, self.opened = [], [], []
        self.feed(html)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("br", "circle", "line", "rect", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("br", "circle", "line", "rect", "img"):
            assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def line(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def some():
    """DC is reproduced, M below it, MD above M; with the lite budget MD against random images."""
    return pd.concat(
        [
            runs("DC", [91.6, 91.7, 91.8]), runs("M", [90.5, 90.6, 90.8]), runs("MD", [92.0, 92.1, 92.3]),
            runs("MD", [70, 71], dataset="FashionMNIST", budget="lite", networks=5),
            runs("random", [50, 51], dataset="FashionMNIST", budget="lite", networks=5),
        ]
    )  # fmt: skip


@pytest.fixture
def claims(some):
    return report.claims_in_words(some, report.judge_claims(some), pd.DataFrame())


# ---- claims in words -------------------------------------------------------------------------------------


def test_every_claim_has_a_row(claims):
    by_id = {claim.id: claim for claim in claims}
    assert len(by_id) == len(claims) == len(report.ORDERINGS) + len(report.hypothesis.QUESTIONS) + 2 + 3
    assert [c.group for c in claims] == sorted((c.group for c in claims), key=list(report.matrix.CHAPTERS).index)
    outcomes = {name: (by_id[name].outcome, by_id[name].word) for name in by_id}
    assert outcomes["m-beats-dc"] == ("not decided", "reversed so far"), "in one of the paper's 14 cells"
    assert outcomes["md-beats-m"] == ("not decided", "held so far")
    assert outcomes["multi-level-best"] == ("not run", "not run"), "Inter was not run"
    assert outcomes["a-saves-steps"] == ("by counting", "by counting")
    assert outcomes["a-saves-time"] == outcomes["section-5-1"] == ("not run", "not run")
    m = by_id["m-beats-dc"]
    assert (m.shown, len(m.run), len(m.cells)) == ("9 of 14", 1, 14)
    (cell,) = m.run
    assert cell.name == "MNIST, 1 per class" and cell.ours.startswith("M − DC: −1.07 (")
    assert cell.papers == "−0.8" and cell.mark.paper == pytest.approx(-0.8)
    assert cell.runs == (("MNIST", 1, "M", "paper", "convnet"), ("MNIST", 1, "DC", "paper", "convnet"))


def test_measured_times_decide_their_claims(some):
    measured = {
        "text-efficiency-a-saving-at-least": (28, 26, 30),
        "text-efficiency-a-saving-at-most": (35, 31, 36),
        "text-efficiency-m-and-d-extra-time-at-most": (0.5, 0.1, 0.9),
    }
    found = report.judge_claims(some, measured)
    by_id = {claim.id: claim for claim in report.claims_in_words(some, found, pd.DataFrame())}
    assert (by_id["a-saves-time"].outcome, by_id["a-saves-time"].word) == ("not decided", "mixed")
    assert by_id["m-and-d-are-cheap"].outcome == "held"


def test_questions_of_section_5_need_enough_sets(some):
    stored = readback.stored_descents()
    if stored.empty:
        pytest.skip("no descents are stored")
    every = [c for c in report.claims_in_words(some, report.judge_claims(some), stored) if "section-5" in c.id]
    claims = [c for c in every if c.is_ours]
    assert [c.id for c in every if not c.is_ours] == ["section-5-levels", "section-5-magnitude"]
    n = {c.id: c.cells[0].ours for c in claims}
    assert len(claims) == 6 and all("sets" in text for text in n.values())
    groups = [some for _, some in report.descents_by_cell(stored)]
    for claim in claims:
        found = [report.reach_correlations(report.reach_points(some))[claim.sentence] for some in groups]
        expected = [report.correlation_outcome(*each)[0] for each in found]
        assert [cell.outcome for cell in claim.cells] == expected


def descents(distances, budget="paper", dataset="MNIST"):
    """Descents from one start: {method: distance of the trap of each set}."""
    rows = [(method, j, d) for method, each in distances.items() for j, d in enumerate(each)]
    table = pd.DataFrame(rows, columns=["method", "set", "distance"])
    same = {"dataset": dataset, "ipc": 1, "budget": budget, "start": 0, "eps": 0.1, "max_steps": 9, "reached": True}
    measured = {"steps": 5, "test_accuracy": 50.0, "train_loss": 0.1, "real_loss": 1.0, "real_gradient_norm": 1.0}
    return table.assign(**same, **measured, gradient_norm=0.05, accuracy=80.0)


def test_the_papers_changes_are_compared_by_the_distance_of_their_traps():
    """M is 0.4 nearer than DC, and MD as far as M. The pairs vary by 0.02, noise does not count."""
    near = descents(
        {"DC": (3.0, 3.1), "M": (2.6, 2.72), "MD": (2.61, 2.7), "noise": (1.0, 9.0), "random": (1.0, 9.0)}
    )
    levels, magnitude = report.trap_verdicts(near)
    assert (levels.better, levels.worse, levels.outcome) == ("M", "DC", "reversed")
    assert levels.difference == pytest.approx(-0.39) and "3 methods" in levels.test
    assert magnitude.outcome == "not decided" and magnitude.difference == pytest.approx(-0.005)
    assert report.trap_verdicts(near[near["method"] != "M"]) == []

    every = pd.concat([near, near.assign(dataset="CIFAR10")])
    claims = {c.id: c for c in report.claims_in_words(NOTHING, report.judge_claims(NOTHING), every)}
    claim = claims["section-5-levels"]
    assert (claim.outcome, claim.word) == ("reversed", "reversed") and "remove the local minimum" in claim.quote
    assert [cell.ours.partition(" (")[0] for cell in claim.cells] == ["M − DC: −0.39"] * 2
    html = report.message(report.judge_claims(NOTHING), list(claims.values())).data
    assert "farther than DC does</a> (reversed in 2 of 2 data sets run)" in html
    page = report.traps_forest(every).data
    assert "at ε" not in page, "one threshold"
    several = pd.concat([every, every.assign(eps=0.5)])
    assert "All outcomes are the same at ε = 0.5 and ε = 0.1." in report.traps_forest(several).data
    farther = every.assign(eps=0.5, distance=every["distance"] + 2 * (every["method"] == "M"))
    assert (
        "Some outcomes are others at ε = 0.5, of those at ε = 0.5 and ε = 0.1."
        in report.traps_forest(pd.concat([every, farther])).data
    )
    assert page.count('<th scope="row">') == 4 and "has the farther trap" in page and "points" not in page


def test_the_message_counts_what_was_tested(some, claims):
    found = report.judge_claims(some)
    html = report.message(found, claims).data
    text = Text(html).line
    outcomes = found["outcome"].value_counts()
    # DC twice, M twice, MD twice: Table 4 has MD too.
    assert "None of the 6 accuracies that we could judge contradicts the paper." in text
    assert f"Of the {len(found)} numbers that the paper prints, {outcomes['not run']} were not run" in text
    assert "at 1 image per class of MNIST." in text
    lists = re.findall(r"<ul>(.*?)</ul>", html)
    papers, ours = ([c.outcome for c in claims if c.is_ours == which] for which in (False, True))
    wanted = [outcomes, *(pd.Series(some).value_counts() for some in (papers, ours))]
    for row, total, counts in zip(lists, (len(found), len(papers), len(ours)), wanted, strict=True):
        assert f"<p>{total} " in html
        shown = {name.strip(): int(n) for n, name in re.findall(r"<b>(\d+)</b> <i[^>]*>.</i> ([\w ]+)", row)}
        assert shown == counts.to_dict() and sum(shown.values()) == total


def test_the_message_says_in_how_many_cells_a_claim_held():
    """Of three cells that were run, one held and two are not decided. A shorter run does not count."""
    pairs = {"MNIST": (92, 80), "FashionMNIST": (70, 70), "CIFAR10": (28, 28)}
    cells = [runs("M", [m - 0.1, m + 0.1], dataset=name) for name, (m, _) in pairs.items()]
    cells += [runs("DC", [dc + 0.1, dc - 0.1], dataset=name) for name, (_, dc) in pairs.items()]
    cells += [runs(name, [70, 70.1], dataset="SVHN", budget="lite") for name in ("M", "DC")]
    results = pd.concat(cells)
    found = report.judge_claims(results)
    html = report.message(found, report.claims_in_words(results, found, pd.DataFrame())).data
    assert "M beats DC in most cells</a> (held in 1 of 3 cells run; the paper has 14)" in html


def test_the_message_names_contradictions():
    found = report.judge_claims(runs("DC", [80.0, 80.1, 80.2]))
    claims = report.claims_in_words(NOTHING, found, pd.DataFrame())
    message = report.message(found, claims).data
    assert (
        "2 of the 2 accuracies that we could judge contradict the paper (MNIST 1, intra-class; MNIST 1, DC)."
        in message
    )
    empty = report.message(report.judge_claims(NOTHING), claims).data
    assert "No accuracy of the paper could be judged yet." in empty


def test_the_matrix_has_the_verdict_first_and_the_papers_words(claims):
    html = report.claims_matrix(claims).data
    page = Text(html)
    rows = re.findall(r'<details class="gm-claim" id="claim-([\w-]+)"><summary>(.*?)</summary>', html)
    assert [id for id, _ in rows] == [claim.id for claim in claims]
    for (_, summary), claim in zip(rows, claims, strict=True):
        assert summary.startswith('<span class="gm-verdict"><span class="gm-sign')
        assert unescape(summary).index(claim.word) < unescape(summary).index(claim.sentence)
    for claim in claims:
        assert claim.quote in page.line
    assert page.line.count("not run") == sum(c.outcome == "not run" for c in claims) + len(
        {(c.id, cell.note) for c in claims for cell in c.cells if cell.outcome == "not run"}
    )
    assert "MNIST, 10 per class: M − DC +0.2" in page.line


def test_runs_are_shown_inside_their_cells(claims):
    asked = []
    html = report.claims_matrix(claims, lambda keys: asked.append(keys) or f"<p>{len(keys)} runs</p>").data
    Text(html)
    assert (("MNIST", 1, "M", "paper", "convnet"), ("MNIST", 1, "DC", "paper", "convnet")) in asked
    assert html.count("<p>2 runs</p>") == sum(len(claim.run) for claim in claims if "saves" not in claim.id)


def test_a_drawing_marks_what_is_cut_off():
    marks = [Mark("held", 1.0, 0.5, 1.5, paper=-1.0), Mark("reversed", -5.0, -9.0, 1.0, paper=30.0, faint=True)]
    svg = drawing(marks, reach=2.0)
    Text(svg)
    first, second = re.findall(r'<g class="([^"]*)">(.*?)</g>', svg)
    assert first[0] == "gm-yes" and 'cx="75.0%"' in first[1] and 'cx="25.0%"' in first[1] and "‹" not in first[1]
    assert second[0] == "gm-no gm-faint" and "‹" in second[1] and "circle" not in second[1]


def test_the_last_table_has_a_sign_for_every_number(some):
    found = report.judge_claims(some)
    html = report.not_run_table(found).data
    Text(html)
    assert len(re.findall(r'<span class="gm-\w+" title=', html)) == len(found)
    missing = [int(n) for n, _ in re.findall(r">(\d+) of (\d+)</td>", html)]
    assert sum(missing) == (found["outcome"] == "not run").sum()
    assert html.count("not run</") == 2, "the head of the column and the legend"


# ---- every number ----------------------------------------------------------------------------------------


def a_run(method, seed, accuracies, *, title="a"):
    recipe = {"method": method, "dataset": "MNIST", "ipc": 1, "seed": seed}
    record = {"recipe": recipe, "method": method, "budget": "paper"}
    images = torch.linspace(-3, 3, 2 * 4 * 4).reshape(2, 1, 4, 4)
    S = CondensedSet(
        images=images, labels=torch.tensor([0, 1]), classes=(title, "b"), mean=(0.5,), std=(0.5,), recipe=recipe,
        record=record, evaluations={"convnet": Evaluation(tuple(accuracies), "convnet", seed, {})},
    )  # fmt: skip
    return StoredRun(S, Path("set.safetensors"), {"run.json": json.dumps({"note": title})})


@pytest.fixture
def explorer(some):
    stored = report.Runs([a_run("random", seed, [50.0 + seed] * 10) for seed in (0, 1)])
    more = pd.concat([some, runs("random", [50, 51])])
    return report.Explorer(report.judge_claims(more), more, stored)


def test_the_table_is_complete_without_a_script(explorer):
    html = explorer._repr_html_()
    table, data = html.split('<script type="application/json">')
    page = Text(table.replace('<div class="gm-explorer">', "", 1))
    rows = re.findall(r'<tr role="row" data-i="(\d+)">(.*?)</tr>', table)
    found = explorer.found
    assert [int(i) for i, _ in rows] == list(range(len(found))) and len(found) == 187
    for (_, row), c in zip(rows, found.itertuples(), strict=True):
        assert row.startswith('<td role="cell" class="gm-verdict"><span class="gm-sign')
        assert f"{c.paper:.{paper.decimals(c.paper, c.unit)}f}" in row and unescape(row).count(c.outcome) >= 1
        assert ("<svg" in row) == (c.outcome in ("reproduced", "not decided", "differs", "another budget"))
    assert "whole training set" in page.line and "MD from lenet, to resnet18" in page.line
    assert json.loads(data.partition("</script>")[0].replace("\\u003c", "<")) == json.loads(
        json.dumps(explorer.data())
    )


def test_every_network_is_a_dot_at_its_distance_from_the_papers_number(explorer):
    i = list(explorer.found["claim"]).index("table3-mnist-1-dc")
    row = re.findall(rf'<tr role="row" data-i="{i}">(.*?)</tr>', explorer._repr_html_())[0]
    at = sorted(float(x) for x in re.findall(r'class="gm-net" cx="([\d.]+)%"', row))
    dots = sorted([91.6, 91.7, 91.8] * 10)
    values = sorted(explorer.results.query("method == 'DC'")["accuracy"])
    assert len(at) == len(dots) == 30
    reach = report.matrix.POINTS
    assert at == pytest.approx([50 + 50 * (v - 91.7) / reach for v in values], abs=0.06)


def test_the_script_has_the_difference_of_every_pair(explorer):
    data = explorer.data()
    (pair,) = [p for p in data["pairs"] if p["at"] == ["MNIST", 1, "convnet"] and {p["a"], p["b"]} == {"MD", "DC"}]
    v = report.verdict(explorer.results.query("dataset == 'MNIST'"), pair["a"], pair["b"])
    assert (pair["d"], pair["low"], pair["high"]) == pytest.approx((v.difference, v.low, v.high), abs=1e-3)
    assert len(data["pairs"]) == 6 + 1, "four methods on MNIST, two on FashionMNIST"
    assert {p["budget"] for p in data["pairs"] if p["at"][0] == "FashionMNIST"} == {"lite"}
    assert data["rows"][list(explorer.found["claim"]).index("table3-mnist-whole")]["ipc"] is None


def test_a_number_opens_to_its_sets_and_to_the_other_methods(explorer):
    i = list(explorer.found["claim"]).index("table3-mnist-1-random")
    row = re.findall(rf'<tr role="row" data-i="{i}">(.*?)</tr>', explorer._repr_html_())[0]
    page = Text(row)
    assert "random images, set 0 : 50.0 % mean of 10 networks" in page.line and "51.00 51.00" in page.line
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert [a["src"] for a in pictures] == [f"{DOWNLOADS}/MNIST-ipc1-random-set{seed}.png" for seed in (0, 1)]
    for seed, (a, run) in enumerate(zip(pictures, explorer.runs.runs, strict=True)):
        assert a["alt"] == f"MNIST: 1 image of each of 2 classes (a, b), random images, set {seed}"
        assert a["loading"] == "lazy", "a page that loads every picture is too large"
        size = Image.open(io.BytesIO(picture(run))).size
        assert (int(a["width"]), int(a["height"])) == size
    links = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    section = Text(explorer.runs.section().data)
    assert set(links) <= {a.get("id") for _, a in section.elements}
    assert 'run.json {"note": "a"}' in section.line
    others = re.findall(r"<li>(<span.*?)</li>", row)
    assert sorted(Text(other).line.split()[2].rstrip(":") for other in others) == ["DC", "M", "MD"]
    assert all("gm-no" in other and "below" in other for other in others)


def test_names_are_shown_as_they_are():
    results = runs(BAD, [50, 51]).assign(dataset=BAD)
    both = pd.concat([results, results.assign(method="M")])
    stored = report.Runs([a_run(BAD, 0, [50.0], title=BAD)])
    explorer = report.Explorer(report.judge_claims(both), both, stored)
    for html in (explorer._repr_html_().split("<script")[0] + "</div>", stored.section().data):
        page = Text(html)
        assert not any("onclick" in a for _, a in page.elements)
    assert "<b" not in explorer._repr_html_().split("application/json")[1].partition("</script>")[0]
    shown = stored.short([("MNIST", 1, BAD, "paper", "convnet")])
    assert BAD in Text(shown).line.replace(" :", ":") and not any("onclick" in a for _, a in Text(shown).elements)


def test_the_stored_page_is_small_and_its_links_lead_somewhere():
    runs_ = report.Runs.stored()
    explorer = report.Explorer.stored(runs_)
    claims = report.claims_in_words(found=explorer.found, results=explorer.results)
    made = [report.message(explorer.found, claims), report.claims_matrix(claims, runs_.short)]
    made += [runs_.section(), report.not_run_table(explorer.found)]
    html = explorer._repr_html_() + "".join(part.data for part in made)
    assert len(html.encode()) < 1_200_000, "the report's style and fonts come on top, and a page has a limit"
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'href="#([^"]+)"', html)) - {"every-number"}
    assert links and links <= set(ids)
    assert len(explorer.found) == 187 and len(claims) == 25
    run = explorer.found[explorer.found["n"].notna() & (explorer.found["outcome"] != "too few networks")]
    assert report.find_deviations(shipped.condensed())["numbers"].sum() == len(run[run["unit"] == "percent"])
