"""The first page and the README's beginning: the film, the five answers, ours against the paper's numbers."""

import html
import json
import math
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image

from gmlib.evaluation import Evaluation
from gmlib.runs import readback, shipped
from gmlib.sets import SyntheticSet
from gmreport import front, judge_claims
from gmreport.front import Film, five_answers, hero, ours_against_paper, stored_film


def long_form(cells):
    """Results in long form: {(dataset, ipc, method, budget): means of its sets}, ten networks on each set."""
    rows = []
    for (dataset, ipc, method, budget), means in cells.items():
        for seed, mean in enumerate(means):
            for net in range(10):
                rows.append((dataset, ipc, method, budget, seed, "convnet", net, mean + 0.1 * (net - 4.5)))
    return pd.DataFrame(rows, columns=readback.COLUMNS)


def descents(n_learned, n_random, learned=3.0, random=2.0):
    """Descents from one start for sets of MD and random images. A farther trap goes with a better accuracy."""
    far = [("MD", j, learned + 0.01 * j) for j in range(n_learned)]
    far += [("random", j, random + 0.01 * j) for j in range(n_random)]
    same = {"dataset": "MNIST", "ipc": 1, "budget": "lite", "start": 0, "eps": 0.1, "max_steps": 9, "reached": True}
    measured = {"steps": 5, "test_accuracy": 50.0, "train_loss": 0.1, "real_loss": 1.0, "real_gradient_norm": 1.0}
    return pd.DataFrame(
        [
            {**same, **measured, "method": method, "set": j, "distance": d, "accuracy": 20 * d, "gradient_norm": 0.05}
            for method, j, d in far
        ]
    )


def answers(cells, walked=None):
    return five_answers(long_form(cells), pd.DataFrame() if walked is None else walked)


# ---- five answers


def test_nothing_was_run():
    found = five_answers(pd.DataFrame(columns=readback.COLUMNS), pd.DataFrame())
    assert [a.outcome for a in found] == ["not run"] * 5
    assert "not run" in front.answers_html(found).data


def test_a_difference_against_zero_answers_a_question():
    cells = {
        ("MNIST", 1, "DC", "paper"): (92, 92.1),
        ("MNIST", 1, "M", "paper"): (90, 90.1),
        ("MNIST", 1, "MD", "paper"): (91, 91.1),
        ("MNIST", 1, "random", "paper"): (60, 61.2),
    }
    condensing, what, how, where, maxmin = answers(cells)
    assert [a.word for a in (condensing, what, how, where, maxmin)] == ["yes", "no", "yes", "not run", "not run"]
    assert "2.0 points lower" in what.sentence and "1.0 points higher" in how.sentence
    assert what.value == pytest.approx(-2) and what.high < 0 < how.low
    assert "the paper's protocol" in what.basis
    wide = answers(cells | {("MNIST", 1, "random", "paper"): (20, 99)})[0]
    assert wide.word == "not decided" and wide.low < 0 < wide.high


def test_the_paper_s_protocol_goes_before_a_shorter_budget():
    lite = {("MNIST", 1, "M", "lite"): (80, 80.1), ("MNIST", 1, "DC", "lite"): (70, 70.1)}
    shorter = answers(lite)[1]
    assert (shorter.outcome, shorter.word) == ("another budget", "shorter run: yes") and "lite" in shorter.basis
    both = lite | {("MNIST", 1, "M", "paper"): (80, 80.1), ("MNIST", 1, "DC", "paper"): (90, 90.1)}
    assert answers(both)[1].word == "no" and "lite" not in answers(both)[1].basis
    one_set = lite | {("MNIST", 1, "M", "paper"): (80,), ("MNIST", 1, "DC", "paper"): (90,)}
    assert answers(one_set)[1].word == "shorter run: yes", "one set of each has no interval"


def test_most_cells_give_the_outcome_and_the_first_with_it_in_table_3_the_number():
    def cell(dataset, ipc, difference):
        return {
            (dataset, ipc, "MD", "paper"): (80 + difference, 80.1 + difference),
            (dataset, ipc, "M", "paper"): (80, 80.11),
        }

    some = cell("CIFAR10", 1, 5) | cell("FashionMNIST", 1, 3) | cell("MNIST", 10, 1)
    how = answers(some)[2]
    assert how.outcome == "held" and how.basis.startswith("MNIST, 10 images per class")
    assert how.basis.endswith("MNIST, 10: +1.0, yes; FashionMNIST, 1: +3.0, yes; CIFAR10, 1: +5.0, yes.")
    assert "1.0 points higher" in how.sentence
    opposite = answers(some | cell("SVHN", 1, -5))[2]
    assert (opposite.outcome, opposite.word) == ("not decided", "mixed"), "one cell says the opposite"
    assert "1.0 points higher" in opposite.sentence and "on MNIST, and 5.0 points lower on SVHN" in opposite.sentence
    one_set = {("SVHN", 1, method, "paper"): (80,) for method in ("MD", "M")}
    assert answers(some | one_set)[2].outcome == "held", "a cell with one set says nothing"
    undecided = answers(some | cell("MNIST", 1, 0))[2]
    assert undecided.outcome == "held" and undecided.low > 0, "one cell is not decided, and its number is not given"
    assert undecided.basis.startswith("MNIST, 10 images per class") and "MNIST, 1: −0.0, not" in undecided.basis
    elsewhere = {("digits", 1, "MD", "paper"): (9, 9.1), ("digits", 1, "M", "paper"): (5, 5.1)}
    assert answers(elsewhere)[2].outcome == "not run", "not a cell of the paper"


def test_the_schedule_is_named_with_the_steps_that_it_saves():
    cells = {("MNIST", 10, "MDA", "paper"): (97, 97.1), ("MNIST", 10, "MD", "paper"): (97, 97.2)}
    sentence = answers(cells)[3].sentence
    assert "190 steps instead of 450" in sentence and "DC" not in sentence
    sentence = answers(cells | {("MNIST", 10, "DC", "paper"): (98, 98.1)})[3].sentence
    assert "Against class by class (DC): no, −1.0" in sentence and "paper" not in sentence


def test_images_chosen_by_herding_are_named_too():
    cells = {("MNIST", 1, "MD", "paper"): (92, 92.1), ("MNIST", 1, "random", "paper"): (60, 60.3)}
    assert "herding" not in answers(cells)[0].sentence
    more = cells | {("MNIST", 1, "MD", "lite"): (92, 92.1), ("MNIST", 1, "herding", "lite"): (89, 89.1)}
    assert "herding: yes, +3.0" in answers(more)[0].sentence and ", lite)" in answers(more)[0].sentence


def test_the_hypothesis_needs_both_correlations_and_enough_sets():
    assert answers({}, descents(8, 6))[4].word == "yes"
    few = answers({}, descents(4, 2))[4]
    assert few.word == "too few sets" and few.high <= 1
    assert answers({}, descents(0, 6))[4].word == answers({}, descents(6, 0))[4].word == "not run"
    untrained = descents(8, 6)
    untrained.loc[untrained.index[7], ["accuracy", "distance"]] = math.nan, 103.0  # the mean of 3.00 ... 3.06 and 103
    assert "(distance 15.53)" in answers({}, untrained)[4].sentence
    nearer = answers({}, descents(8, 6, learned=2.0, random=3.0))[4]
    both = pd.concat([descents(8, 6), descents(4, 2).assign(dataset="CIFAR10")])
    assert "; CIFAR10, 1 image per class: +1.00, too few sets." in answers({}, both)[4].sentence
    walked = descents(8, 6).assign(accuracy=lambda t: 200 - t["accuracy"], dataset="CIFAR10")
    assert answers({}, pd.concat([descents(8, 6), walked]))[4].word == "mixed"
    other_budgets = both.assign(budget=both["dataset"].map({"MNIST": "paper", "CIFAR10": "lite"}))
    assert "CIFAR10" not in answers({}, other_budgets)[4].sentence
    assert nearer.word == "no" and "nearer" in nearer.sentence


def test_the_hypothesis_holds_in_part_if_the_papers_changes_move_the_traps_nearer():
    walked = descents(8, 6)  # MD; two of M are farther by 1, and two of DC by 2
    more = [
        walked[(walked["method"] == "MD") & (walked["set"] < 2)].assign(method=method, distance=[3.0 + by, 3.01 + by])
        for method, by in (("M", 1.0), ("DC", 2.0))
    ]
    for table in more:
        table["accuracy"] = 20 * table["distance"]
    answer = answers({}, pd.concat([walked, *more]))[4]
    assert (answer.outcome, answer.word) == ("not decided", "in part")
    assert "M's trap is nearer than DC's in 1 of 1 cell; MD's trap is nearer than M's" in answer.sentence
    near = more[0].assign(distance=more[0]["distance"] - 2, accuracy=more[0]["accuracy"] - 40)
    farther = answers({}, pd.concat([walked, near]))[4]
    assert farther.word == "yes" and "MD's trap is farther than M's" in farther.sentence


def test_an_interval_shows_on_which_side_of_zero_it_ends():
    assert front._interval(0.04, 1) == "95% interval +0.04 to +1.00"
    assert front._interval(-0.3, 1.23) == "95% interval −0.3 to +1.2"
    assert "no interval" in front._interval(math.nan, math.nan)


# ---- the film


def tiny_set(seed, kind=SyntheticSet, **more):
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return kind(images, torch.arange(10), tuple("0123456789"), (0.5,), (0.25,), **more)


def evaluation(mean):
    return Evaluation((mean - 1, mean, mean + 1), "convnet", 0)


def tiny_film(traced=True):
    last = evaluation(92.0)
    learned = tiny_set(3, shipped.CondensedSet, evaluations={"convnet": last})
    real = tiny_set(4, shipped.CondensedSet, evaluations={"convnet": evaluation(70.5)})
    states = {k: tiny_set(k) for k in (0, 5, 10, 20)} | {40: learned}
    accuracies = {0: evaluation(9.5), 5: evaluation(80.5), 20: evaluation(91.25)} if traced else {}
    return Film(learned, real, states, accuracies | {40: last})


def test_the_film_shows_every_state_and_every_accuracy_that_there_is():
    shown = hero(tiny_film()).data
    assert len(re.findall('class="gm-hero-state[ "]', shown)) == 5 and shown.count("gm-still") == 3
    names = json.loads(re.search(r'<script type="application/json">(.*?)</script>', shown)[1])
    assert len(names) == 5 and names[0].endswith("9.5 %") and names[-1].endswith("92.0 %")
    assert "%" not in names[2], "no network was trained on this state"
    assert shown.count('class="gm-hero-dot') == 4
    assert "70.5 %" in shown and hero(tiny_film()).data == shown


def test_without_a_trace_the_film_shows_the_last_accuracy_only():
    shown = hero(tiny_film(traced=False)).data
    assert shown.count('class="gm-hero-dot') == 1 and "92.0 %" in shown and "9.5 %" not in shown


def test_every_picture_of_the_film_has_an_alternative_text():
    for picture in re.findall(r"<img[^>]*>", hero(tiny_film()).data):
        assert re.search(r'alt="[^"]+"', picture)


def test_one_state_alone_has_no_slider():
    film = tiny_film()
    alone = Film(film.learned, film.real, {40: film.learned}, {40: film.accuracies[40]})
    assert "<input" not in hero(alone).data and "92.0 %" in hero(alone).data


def test_no_film_is_a_sentence(tmp_path):
    assert stored_film(tmp_path) is None and "not stored" in hero(None).data


@pytest.fixture(scope="module")
def stored():
    found = stored_film()
    assert found is not None, "the run of the first page is missing from results/"
    return found


def test_the_stored_film_goes_from_noise_to_the_set(stored):
    assert min(stored.states) == 0 and stored.last == stored.learned.recipe["outer_loops"]
    assert torch.equal(stored.states[stored.last].images, stored.learned.images)
    assert not torch.equal(stored.states[0].images, stored.learned.images)
    assert stored.learned.budget == "paper" and stored.accuracies[stored.last].n >= 10


def test_snapshots_of_another_set_are_refused(tmp_path):
    runs = shipped.FOLDER / "MNIST" / "ipc1"
    for method in ("MD", "random"):
        shutil.copytree(runs / method / "set0", tmp_path / "MNIST" / "ipc1" / method / "set0")
    assert stored_film(tmp_path) is not None
    place = "set0/snapshots.safetensors"
    shutil.copy(runs / "DC" / place, tmp_path / "MNIST" / "ipc1" / "MD" / place)
    with pytest.raises(ValueError, match="belongs to another set"):
        stored_film(tmp_path)


# ---- ours against the paper's


def made_up_claims():
    """DC and random images at one image per class and M at ten are judged, and MD has another budget."""
    cells = {("MNIST", 1, "DC", "paper"): (91.6, 91.9), ("MNIST", 1, "random", "paper"): (64.0, 85.0)}
    cells |= {("MNIST", 10, "M", "paper"): (90.0, 90.1), ("MNIST", 1, "MD", "lite"): (90.0, 90.1)}
    return judge_claims(long_form(cells))


@pytest.fixture(scope="module")
def claims():
    return made_up_claims()


def rows_of(shown):
    return [
        html.unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", row))
        for row in re.findall(r"<li>(.*?)</li>", shown.data.partition("<details")[2], flags=re.DOTALL)
    ]


def test_every_judged_number_has_a_row_and_no_other(claims):
    rows = rows_of(ours_against_paper(claims))
    judged = claims[claims["outcome"].isin(["reproduced", "differs", "not decided"])]
    assert len(rows) == len(judged) == 5, "DC in Tables 1 and 3, M at ten in both, random images"
    for row, c in zip(rows, judged.itertuples(), strict=True):
        assert c.outcome in row and f"{c.ours:.1f}" in row and f"{c.low:.1f} to {c.high:.1f}" in row
        assert f"paper {c.paper:.1f} ± {c.paper_std:.1f}" in row


def test_the_interval_is_drawn_at_its_distance_from_the_paper_s_mean(claims):
    shown = ours_against_paper(claims).data
    dc = claims[(claims["row"] == "MNIST 1") & (claims["column"] == "DC")].iloc[0]
    place = 50 + 50 * ((dc["low"] + dc["high"]) / 2 - dc["paper"]) / front.LIMIT
    assert f'class="gm-ours" cx="{place:.1f}%"' in shown
    random = re.search(r">random images<.*?</li>", shown, flags=re.DOTALL)[0]
    assert "‹" in random and "›" in random and "<circle" not in random, "far outside on both sides"


def test_many_numbers_open_the_first_table_only(claims, monkeypatch):
    assert ours_against_paper(claims).data.count("<details open>") == 2
    monkeypatch.setattr(front, "CLOSED_FROM", 2)
    assert ours_against_paper(claims).data.count("<details open>") == 1


def test_nothing_judged_is_a_sentence():
    nothing = judge_claims(pd.DataFrame(columns=readback.COLUMNS))
    assert "No number" in ours_against_paper(nothing).data


# ---- the README

RUN = "run: python -m gmreport.front"


def test_the_readme_begins_with_what_the_results_say(stored):
    text = (shipped.PLACE / "README.md").read_text("utf-8")
    assert front.readme_part(stored, five_answers()) in text, RUN
    assert text.index(front.BEGIN) < 700 and "## " not in text.partition(front.BEGIN)[0]


def test_the_picture_shows_the_stored_film(stored):
    path = shipped.PLACE / front.PICTURE
    assert front.picture_shows(path) == front.fingerprint(stored), RUN
    with Image.open(path) as picture:
        assert picture.size == (1200, 630) and path.stat().st_size < 150_000


def test_the_fingerprint_depends_on_pixels_and_accuracies():
    film = tiny_film()
    other = Film(film.learned, film.real, film.states | {0: tiny_set(9)}, film.accuracies)
    assert len({front.fingerprint(f) for f in (film, other, tiny_film(traced=False))}) == 3


def test_the_readme_has_the_times_of_the_stored_sets():
    text, sets = (shipped.PLACE / "README.md").read_text("utf-8"), shipped.condensed()
    part = front.times_part(sets)
    assert part in text, RUN
    condensed = [S for S in sets if S.history]
    rows = [line for line in part.splitlines() if line.startswith("|")][2:]
    numbers = [row.split("|")[5].partition(",")[0].strip() for row in rows]
    assert sum(int(n) for n in numbers if n) == len(condensed)
    sources = {S.recipe["network"] for S in condensed if S.recipe["network"] != "convnet"}
    assert {row.partition(", from ")[2].partition(" ")[0] for row in rows} == sources | {""}


def test_times_stand_beside_the_machine_that_took_them():
    S = next(S for S in shipped.condensed() if S.history and "convnet" in S.evaluations)
    here, there = {"device_name": "This one", "threads": 1}, {"device_name": "Another", "threads": [1, 2]}
    e = replace(S.evaluations["convnet"], seconds=30.0 * S.evaluations["convnet"].trained)
    S = replace(S, record=S.record | here | {"seconds": 600}, evaluations={"convnet": e})
    same = front.times_part([replace(S, trained_with={"convnet": here})]).splitlines()[4:-2]
    assert len(same) == 1 and "This one, 1 thread |" in same[0] and same[0].endswith("| 10 min | 30 s |")
    made, trained = front.times_part([replace(S, trained_with={"convnet": there})]).splitlines()[4:-2]
    assert "This one, 1 thread |" in made and made.endswith("| 10 min |  |")
    assert "Another, 1 and 2 threads |" in trained and trained.endswith("|  |  |  | 30 s |")


def test_the_part_of_a_readme_is_replaced_and_nothing_else():
    old = f"# Title\n\n{front.BEGIN}\nold\\1\n{front.END}\n\nrest\n"
    new = front.readme_part(tiny_film(), five_answers(long_form({}), pd.DataFrame()))
    written = front.write_part(old, new)
    assert written == f"# Title\n\n{new}\n\nrest\n" and front.write_part(written, new) == written
    with pytest.raises(ValueError, match="lacks the lines"):
        front.write_part("# Title\n", new)
