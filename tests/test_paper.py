"""The published numbers, against a second reading of the paper and against what its text says about them."""

from pathlib import Path

import pandas as pd
import pytest

from gmlib import METHODS, Recipe, networks
from gmlib.coresets import CORESETS
from gmlib.runs.cells import Wanted, read_lines
from gmreport import paper

SECOND_READING = Path(__file__).with_name("second_reading.csv")  # by another reader of the paper


def cells(path):
    """{(table, row, column): (value, std, unit)}, all as text, so that 34.0 differs from 34."""
    read = pd.read_csv(path, dtype=str, keep_default_na=False)
    read["table"] = read["table"].str.replace(r"^(\d)$", r"Table \1", regex=True)
    found = {(r.table, r.row, r.column): (r.value, r.std, r.unit) for r in read.itertuples()}
    assert len(found) == len(read), "a cell exists twice"
    return found


def values(table):
    return paper.published(table).pivot_table(index=["dataset", "ipc"], columns="method", values="value")


def test_two_readings_of_the_paper_agree():
    ours, theirs = cells(paper.FILE), cells(SECOND_READING)
    assert set(ours) - set(theirs) == set() and set(theirs) - set(ours) == set()
    assert {cell: (ours[cell], theirs[cell]) for cell in ours if ours[cell] != theirs[cell]} == {}


def test_every_claim_has_a_unique_id_and_a_known_table():
    read = pd.read_csv(paper.FILE)
    assert read["claim"].is_unique and read["claim"].str.fullmatch(r"[a-z0-9+-]+").all()
    tables = {name: len(paper.published(name)) for name in paper.TABLES}
    assert sum(tables.values()) == len(read)
    # 4 data sets x 2 sizes x 4; 7 distances; 4 x (5 + 7 + 7 + 1) and 5 + 7 + 1 for CIFAR-100; 6 x 6
    assert tables == {"Table 1": 32, "Table 2": 7, "Table 3": 93, "Table 4": 36, "text": 19}


def test_columns_and_their_types():
    for name in paper.TABLES:
        t = paper.published(name)
        assert list(t) == [
            "claim", "table", "row", "column", "value", "std", "unit", "dataset", "ipc", "method", "network",
        ]  # fmt: skip
        assert t["value"].dtype == t["std"].dtype == float and t["ipc"].dtype == "Int64" and set(t["table"]) == {name}
        if name != "text":
            assert t["value"].between(4, 100).all() and t["std"].between(0, 13).all()
            assert set(t["unit"]) == {"percent"}


def test_table_1_names_methods():
    t = paper.published("Table 1")
    assert set(t["dataset"]) == {"MNIST", "FashionMNIST", "SVHN", "CIFAR10"} and set(t["ipc"]) == {1, 10}
    assert set(t["method"]) == {"DC", "Inter", "Interleaved", "M"} <= set(METHODS)


def test_table_2_spells_methods_as_a_recipe_does():
    distances = {"d1": "d1", "d2": "d2", "d3": "d3", "100d4": "100*d4"}
    distances |= {"d1 + d2": "d1 + d2", "d1 + d3": "d1 + d3", "d1 + 100d4": "d1 + 100*d4"}
    for c in paper.published("Table 2").itertuples():
        recipe = Recipe(dataset=c.dataset, ipc=int(c.ipc), what="multi", how=distances[c.column], where="fixed")
        assert (c.method, c.dataset, c.ipc, c.network) == (recipe.method, "SVHN", 1, "convnet")


def test_table_3_names_methods_coresets_and_the_whole():
    t = paper.published("Table 3")
    methods = set(t["method"]) - {"whole"}
    assert methods == {"random", "herding", "DC", "M", "MD", "MDO", "MDA"} <= {*METHODS, *CORESETS}
    whole = t[t["method"] == "whole"]
    assert whole["ipc"].isna().all() and t[t["method"] != "whole"]["ipc"].notna().all()
    printed = {"MNIST": 99.6, "FashionMNIST": 93.5, "SVHN": 95.4, "CIFAR10": 84.8, "CIFAR100": 56.2}
    assert whole.set_index("dataset")["value"].to_dict() == printed
    # "O and A are not applicable when IPC is 1"
    assert not ((t["ipc"] == 1) & t["method"].isin(["MDO", "MDA"])).any()


def test_table_4_names_sources_and_targets():
    t = paper.published("Table 4")
    assert set(zip(t["dataset"], t["ipc"], strict=True)) == {("MNIST", 1)}
    for source, rows in t.groupby("row"):
        network = {"VGG": "vgg11bn", "ResNet": "resnet18bn"}.get(source, source.lower())
        assert set(rows["method"]) == {Recipe.for_method("MD", "MNIST", 1, network=network).method}
        targets = {"mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18"}
        assert set(rows["network"]) == targets <= set(networks.NETWORKS)


def test_the_text_names_runs():
    t = paper.published("text")
    run = t[t["method"].notna()]
    assert set(run["dataset"]) == {"CIFAR10", "TinyImageNet"} and set(run["ipc"]) == {1, 10, 50, 100, 200, 500, 1000}
    detection = run[run["column"] == "detection"].iloc[0]
    assert detection["method"] == Recipe(dataset="CIFAR10", ipc=10, what="intra", how="d1", where="overfit").method
    rest = t[t["method"].isna()]
    assert set(rest["row"]) == {"efficiency"} and rest[["dataset", "ipc"]].isna().all(axis=None)


# ---- numbers that are printed twice, and claims in the text -------------------------------------------------------


def test_tables_1_and_3_print_sixteen_runs_twice_and_differ_in_one():
    shared = values("Table 1").merge(values("Table 3"), on=["dataset", "ipc"], suffixes=(" in 1", " in 3"))
    assert len(shared) == 8
    differ = {
        (*cell, m): (row[f"{m} in 1"], row[f"{m} in 3"])
        for cell, row in shared.iterrows()
        for m in ("DC", "M")
        if row[f"{m} in 1"] != row[f"{m} in 3"]
    }
    assert differ == {("CIFAR10", 1, "M"): (29.7, 29.5)}


def test_other_numbers_printed_twice_agree():
    three = paper.published("Table 3").set_index(["row", "column"])[["value", "std"]].T
    two = paper.published("Table 2").set_index("column")[["value", "std"]].T
    four = paper.published("Table 4").set_index(["row", "column"])[["value", "std"]].T
    assert two["d1"].equals(three["SVHN 1", "M"]) and two["d1 + d2"].equals(three["SVHN 1", "MD"])
    assert four["ConvNet", "ConvNet"].equals(three["MNIST 1", "MD"])
    text = paper.published("text").set_index("claim")["value"]
    assert text["text-cifar10-10-overfitting-fixed"] == three["CIFAR10 10", "DC"]["value"]


def test_relative_accuracies_are_those_of_table_3():
    """CIFAR-10 at 50 images per class: the baseline is DC, and of the paper's own methods only MDO has 71 %."""
    accuracy = values("Table 3").loc[("CIFAR10", 50)]
    whole = paper.published("Table 3").set_index("claim").loc["table3-cifar10-whole", "value"]
    relative = (100 * accuracy / whole).round()
    text = paper.published("text").set_index("claim")["value"]
    assert relative["DC"] == text["text-cifar10-50-relative-baseline"]
    ours = relative[["M", "MD", "MDO", "MDA"]]
    assert list(ours.index[ours == text["text-cifar10-50-relative-ours"]]) == ["MDO"]


def test_multi_level_is_best_in_most_cases():
    """Section 4.2: "in most cases, the multi-level gradient matching achieves the best results"."""
    t = values("Table 1")
    assert (t["M"] >= t.max(axis=1)).sum() == 6


def test_d1_is_the_best_distance_alone_and_better_with_a_magnitude():
    t = paper.published("Table 2").set_index("column")["value"]
    alone = t[["d1", "d2", "d3", "100d4"]]
    assert alone.idxmax() == "d1"
    assert (t[["d1 + d2", "d1 + d3", "d1 + 100d4"]] > t["d1"]).all() and t.idxmax() == "d1 + d2"


def test_m_and_md_outperform_the_baseline_in_most_benchmarks():
    t = values("Table 3")
    assert len(t) == 14
    assert ((t["M"] > t["DC"]).sum(), (t["MD"] > t["DC"]).sum()) == (9, 11)


def test_convnet_is_the_best_source_and_resnet_one_of_the_two_best_targets():
    t = paper.published("Table 4").pivot_table(index="row", columns="column", values="value")
    assert (t.idxmax() == "ConvNet").all()
    assert (t.rank(axis=1, ascending=False)["ResNet"] <= 2).all()


def test_unknown_table():
    with pytest.raises(ValueError, match="unknown table"):
        paper.published("Table 9")


# ---- neighbours ------------------------------------------------------------------------------------------


def test_the_neighbours_dc_is_the_papers_baseline():
    """Section 4.1: the results of the baseline are from its own paper."""
    n = paper.neighbours()
    assert list(n) == ["method", "venue", "dataset", "ipc", "value"]
    assert not n.duplicated(["method", "dataset", "ipc"]).any()
    theirs = n[n["method"] == "DC"].set_index(["dataset", "ipc"])["value"].to_dict()
    assert theirs == values("Table 3")["DC"].to_dict() and len(theirs) == 14


def test_neighbours_as_published():
    n = paper.neighbours()
    assert n.groupby("method").size().to_dict() == {"DC": 14, "DSA": 15, "DM": 6, "MTT": 6}
    assert n.groupby("method")["venue"].unique().map(list).to_dict() == {
        "DC": ["ICLR 2021"], "DSA": ["ICML 2021"], "DM": ["WACV 2023"], "MTT": ["CVPR 2022"],
    }  # fmt: skip
    value = n.set_index(["method", "dataset", "ipc"])["value"]
    assert (value["DSA", "MNIST", 1], value["DM", "CIFAR10", 50], value["MTT", "CIFAR100", 10]) == (88.7, 63.0, 39.7)
    rising = n.sort_values("ipc").groupby(["method", "dataset"])["value"].is_monotonic_increasing
    assert rising.all()


def test_the_file_of_cells_holds_exactly_the_papers_tables():
    extra = {
        "Table 2": {(other, 1, method, "convnet")
                    for other in ("CIFAR10", "FashionMNIST") for method in paper.published("Table 2")["method"]},
        "Table 4": {("MNIST", 1, "random", target) for target in paper.published("Table 4")["network"]},
    }  # fmt: skip
    lines = read_lines()
    networks = Wanted(measures=["networks"]).of(lines, 1)
    for table in ("Table 1", "Table 2", "Table 3", "Table 4"):
        chosen = Wanted([table]).of(lines, 1)
        found = [(c.dataset, c.ipc, c.method, n) for c in chosen for n in c.targets or ("convnet",)]
        figures = paper.published(table)
        of_sets = figures[figures["ipc"].notna()][["dataset", "ipc", "method", "network"]]
        printed = set(of_sets.itertuples(index=False, name=None))
        assert len(found) == len(set(found)) and set(found) == printed | extra.get(table, set()), table
        assert not printed & extra.get(table, set()) and all(c in networks for c in chosen), table
    whole = paper.published("Table 3").query("method == 'whole'")["dataset"]
    assert {c.dataset for c in Wanted(measures=["whole"]).of(lines, 1)} == set(whole)
    assert {(c.table, c.measure) for c in Wanted().of(lines, 1) if c.measure != "networks"} == {
        ("Section 5", "reach"), ("Section 3.3", "pulls"), ("Whole data", "whole")
    }  # fmt: skip


def test_only_tables_of_one_data_set_have_substitutes():
    """A method that no other table has shows which table was run. M and MD are in Table 3 too."""

    def ran(*cells):
        return pd.DataFrame(cells, columns=["dataset", "ipc", "method"])

    fashion = ("FashionMNIST", 1)
    assert paper.substitutes("Table 2", ran((*fashion, "multi,d2,fixed"), (*fashion, "M"))) == {fashion: "SVHN"}
    assert paper.substitutes("Table 2", ran((*fashion, "M"), (*fashion, "MD"), ("SVHN", 1, "multi,d2,fixed"))) == {}
    assert paper.substitutes("Table 2", ran(("FashionMNIST", 10, "multi,d2,fixed"))) == {}, "at another size"
    both = ran((*fashion, "multi,d3,fixed"), ("CIFAR10", 1, "multi,d1+d3,fixed"), ("digits", 1, "M"))
    assert paper.substitutes("Table 2", both) == {fashion: "SVHN", ("CIFAR10", 1): "SVHN"}, "several"
    for source in ("lenet", "resnet18bn"):
        runs = ran(
            (*fashion, f"MD@{source}"), ("MNIST", 1, f"MD@{source}"), ("digits", 1, "MD"), ("digits", 1, "random")
        )
        assert paper.substitutes("Table 4", runs) == {fashion: "MNIST"}
    assert paper.substitutes("Table 4", ran()) == {}
    for table in ("Table 1", "Table 3", "text"):
        runs = ran(("digits", 1, "Inter"), ("digits", 1, "MDO"), ("digits", 10, "intra,d1,overfit"))
        assert paper.substitutes(table, runs) == {}
