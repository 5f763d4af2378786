"""What stands at the top of a chapter, and Section 5's questions as a forest plot."""

import html
import math

import pandas as pd
import pytest

import gmreport as report


def points(n):
    """n sets of M, with an accuracy that rises with the distance to the nearest trap."""
    return pd.DataFrame(
        {"method": "M", "set": range(n), "min_distance": [float(i) for i in range(n)], "eps": 0.1, "train_loss": 0.1,
         "accuracy": [50.0 + i for i in range(n)], "real_gradient_norm": 1.0}
    )  # fmt: skip


def line_of(html, question):
    return next(line for line in html.split("<tr>") if question in line)


@pytest.mark.parametrize(("n", "tone", "word"), [(12, "gm-yes", "held"), (5, "gm-waits", "too few sets")])
def test_a_question_is_a_line_with_its_sign_and_interval(n, tone, word):
    html = report.reach_answers(points(n), caption="Of <here>.")._repr_html_()
    line = line_of(html, "Do sets with a farther trap train better networks?")
    assert f'class="gm-sign {tone}"' in line and word in line and "<b>+1.00</b>" in line and "<svg" in line
    assert "Of &lt;here&gt;." in html and "<here>" not in html


def test_a_question_without_a_correlation_has_no_drawing():
    line = line_of(report.reach_answers(points(12))._repr_html_(), "Does matching raise the distance, against noise?")
    assert "<svg" not in line and "nan" not in line


def test_a_box_has_the_verdict_of_the_claim_and_what_the_page_measured():
    claims = {claim.id: claim for claim in report.claims_in_words()}
    page = report.claims_box("a-saves-steps", "a-saves-time", live=("A saves <5> %", "here")).data
    steps, time, live = page.split("<p>")[1:]
    assert claims["a-saves-steps"].outcome in steps and "190 steps" in steps
    assert claims["a-saves-time"].word in time
    assert "this page" in live and "A saves &lt;5&gt; %." in live and "here." in live
    answer = report.answer_to("hypothesis")
    first, second = report.claims_box("section-5-2", answer=answer).data.split("<p>")[1:]
    assert (
        answer.question in first and html.escape(answer.basis) in first and claims["section-5-2"].sentence in second
    )
    with pytest.raises(ValueError, match="unknown claims"):
        report.claims_box("a-saves-everything")


def test_paths_have_the_names_of_all_pages():
    walked = pd.DataFrame(
        {"path": ["T", "random"], "step": 0, "distance": 0.0, "gradient_norm": 1.0, "gradient_norm_T": 1.0,
         "test_accuracy": math.nan}
    )  # fmt: skip
    assert report.paths_table(walked, 0.1, "").rows == ["T", "random images"]
