import numpy as np
import pandas as pd
import pytest

from forceuq.errors import ConfigurationError, DataError
from forceuq.metric_tables import metrics_frame, write_frame
from forceuq.tables import aggregate, paper_values, table2, table2_frame

SPLITS = [("rmd17", "id", "rMD17 ID"), ("rmd17", "ood", "rMD17 OOD")]
METHODS = {"bll": "BLL_1 & co", "gp": "GP"}


@pytest.fixture
def long_table():
    rng = np.random.default_rng(0)
    rows = []
    for method in METHODS:
        for task in ("ethanol", "uracil"):
            for seed in (0, 1, 2):
                for split in ("id", "ood"):
                    for calibration in ("none", "decoupled"):
                        for metric in ("mae", "ece", "spearman", "nll", "ause"):
                            value, note = rng.uniform(0.1, 0.4), None
                            if method == "gp":
                                value += 0.5
                            if (method, split, metric, task) == ("gp", "ood", "nll", "uracil"):
                                value, note = None, "too many atoms"
                            rows.append(
                                {
                                    "dataset": "rmd17",
                                    "task": task,
                                    "split": split,
                                    "method": method,
                                    "calibration": calibration,
                                    "seed": seed,
                                    "metric": metric,
                                    "value": value,
                                    "n_atoms": 10,
                                    "note": note,
                                }
                            )
    return metrics_frame(pd.DataFrame(rows))


@pytest.fixture
def metrics(tmp_path, long_table):
    write_frame(long_table, tmp_path / "metrics.parquet", "metrics")
    return tmp_path / "metrics.parquet"


def test_mean_and_deviation_go_over_seeds_and_tasks(long_table):
    table = aggregate(long_table).set_index(["split", "method", "calibration", "metric"])
    row = table.loc["id", "bll", "none", "mae"]
    chosen = long_table.query("split == 'id' and method == 'bll' and calibration == 'none' and metric == 'mae'")[
        "value"
    ]
    assert len(chosen) == 6
    assert row["mean"] == pytest.approx(sum(chosen) / 6, rel=1e-14)
    assert row["std"] == pytest.approx(np.sqrt(sum((chosen - chosen.mean()) ** 2) / 5), rel=1e-12)
    assert (row["n"], row["n_seeds"], row["n_tasks"], row["n_undefined"], row["n_atoms"]) == (6, 3, 2, 0, 60)
    row = table.loc["ood", "gp", "none", "nll"]
    assert (row["n"], row["n_undefined"], row["note"]) == (3, 3, "too many atoms")
    one = aggregate(long_table[(long_table["seed"] == 0) & (long_table["task"] == "uracil")])
    assert one["std"].isna().all()
    gone = one[(one["method"] == "gp") & (one["split"] == "ood") & (one["metric"] == "nll")]
    assert gone["mean"].isna().all()


def test_best_is_bold_and_the_csv_has_every_digit(tmp_path, metrics, long_table):
    table2(metrics, tmp_path / "t.any", SPLITS, METHODS)
    csv = pd.read_csv(tmp_path / "t.csv")
    assert list(csv["split"]) == ["rMD17 ID"] * 4 + ["rMD17 OOD"] * 4
    assert set(csv["source"]) == {"this run"}
    means = aggregate(long_table).set_index(["split", "method", "calibration", "metric"])["mean"]
    first = csv[(csv["split"] == "rMD17 ID") & (csv["method"] == "BLL_1 & co") & (csv["calibration"] == "raw")]
    assert first["mae_mean"].item() == means["id", "bll", "none", "mae"]
    assert first["mae_n"].item() == 6

    lines = (tmp_path / "t.md").read_text().splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:10]]
    for split, group in (("id", rows[:4]), ("ood", rows[4:])):
        for column, metric, worst_first in ((3, "mae", False), (4, "ece", False), (5, "spearman", True)):
            values = [float(r[column].strip("*").split(" ")[0]) for r in group]
            bold = [r[column].startswith("**") for r in group]
            assert sum(bold) == 1, (split, metric)
            assert values[bold.index(True)] == (max(values) if worst_first else min(values))
    assert "rMD17 OOD, GP, raw: NLL in 3 of 6 fits (too many atoms)" in "\n".join(lines)
    assert "paper" not in "\n".join(lines)

    tex = (tmp_path / "t.tex").read_text()
    assert r"BLL\_1 \& co" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 9
    assert all(line.replace(r"\&", "").count("&") == 6 for line in body)
    assert tex.count(r"\boldmath") == 8
    assert tex.count("{") == tex.count("}")


def test_equal_values_are_all_best(tmp_path, metrics, long_table):
    same = long_table.copy()
    same.loc[(same["metric"] == "mae") & (same["method"] == "bll"), "value"] = 0.1
    write_frame(same, metrics, "metrics")
    table2(metrics, tmp_path / "t.csv", SPLITS, METHODS)
    rows = (tmp_path / "t.md").read_text().splitlines()[2:4]
    assert all("| **0.100 ± 0.000** |" in row for row in rows)


def test_paper_rows_are_marked_and_neither_bold_nor_averaged(tmp_path, metrics):
    table2(metrics, tmp_path / "t.csv", SPLITS, METHODS, paper={"rmd17": "rmd17"})
    with_paper = pd.read_csv(tmp_path / "t.csv")
    theirs = with_paper[with_paper["source"] == "paper"]
    assert list(theirs["mae_mean"]) == [0.030, 0.259]
    assert list(theirs["spearman_std"]) == [0.056, 0.079]
    ours = with_paper[with_paper["source"] == "this run"].reset_index(drop=True)
    table2(metrics, tmp_path / "u.csv", SPLITS, METHODS)
    pd.testing.assert_frame_equal(ours, pd.read_csv(tmp_path / "u.csv"), check_dtype=False)
    lines = [x for x in (tmp_path / "t.md").read_text().splitlines() if "paper: Recalibrated BLL" in x]
    assert len(lines) == 2
    assert "**" not in "".join(lines)
    # Another run's data set, even of that kind, gets the numbers only where it is told to.
    assert set(table2_frame(metrics, SPLITS, METHODS, paper={"demo": "rmd17"})["source"]) == {"this run"}


def test_a_method_has_rows_on_the_data_sets_that_it_is_fitted_to(tmp_path, long_table):
    other = long_table[long_table["method"] == "bll"].assign(dataset="mptrj")
    write_frame(metrics_frame(pd.concat([long_table, other])), tmp_path / "m.parquet", "metrics")
    splits = [("mptrj", "id", "MPtrj ID"), *SPLITS]
    fitted_to = {"bll": ["mptrj", "rmd17"], "gp": ["rmd17"]}
    frame = table2_frame(tmp_path / "m.parquet", splits, METHODS, fitted_to=fitted_to)
    assert set(frame.loc[frame["split"] == "MPtrj ID", "method"]) == {METHODS["bll"]}
    assert set(frame.loc[frame["split"] == "rMD17 ID", "method"]) == set(METHODS.values())
    # Without it, or where it should have been fitted, what is missing is an error.
    for wrong in (None, {"bll": ["mptrj", "rmd17"], "gp": ["mptrj", "rmd17"]}):
        with pytest.raises(DataError, match="method 'gp' on 'mptrj/id'"):
            table2_frame(tmp_path / "m.parquet", splits, METHODS, fitted_to=wrong)


def test_what_is_missing_is_an_error(metrics):
    with pytest.raises(DataError, match="no metrics of 'rmd17/far'; it has rmd17/id, rmd17/ood"):
        table2_frame(metrics, [("rmd17", "far", "Far")], METHODS)
    with pytest.raises(DataError, match="method 'swag' on 'rmd17/id'"):
        table2_frame(metrics, SPLITS, {**METHODS, "swag": "SWAG"})
    with pytest.raises(ConfigurationError, match="same label"):
        table2_frame(metrics, [("rmd17", "id", "ID"), ("rmd17", "ood", "ID")], METHODS)


def test_the_papers_values_are_whole():
    printed = paper_values()
    assert len(printed["table2"]) == 5
    cells = [c for rows in printed["table2"].values() for row in rows.values() for c in row.values()]
    assert len(cells) == 80
    assert cells.count(None) == 3
    assert printed["table2"]["rmd17/ood"]["Ensemble (LoRA)"]["nll"] == [-0.356, 0.074]


def test_what_the_data_cannot_tell_from_the_best_is_bold_too(tmp_path, metrics):
    compared = [("id", "bll", "none", False), ("id", "bll", "decoupled", True), ("id", "gp", "none", False)]
    rows = [
        {"split": split, "metric": "mae", "method": method, "calibration": kind, "low": 0.0, "worse": worse}
        for split, method, kind, worse in compared
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "c.csv", index=False)
    before, after, few = (tmp_path / f"{name}.any" for name in ("before", "after", "few"))
    table2(metrics, before, SPLITS, METHODS)
    table2(metrics, after, SPLITS, METHODS, comparisons={"rmd17": tmp_path / "c.csv"})

    def bold(path):
        lines = path.with_suffix(".md").read_text().splitlines()[2:10]
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
        return {(row, column) for row, line in enumerate(cells) for column in range(3, 7) if "**" in line[column]}

    # Rows of ID: bll raw, bll decoupled, gp raw, gp decoupled.
    assert bold(after) == bold(before) | {(0, 3), (2, 3)}
    assert "paired bootstrap" in after.with_suffix(".md").read_text()
    assert "paired bootstrap" not in before.with_suffix(".md").read_text()
    assert before.with_suffix(".csv").read_bytes() == after.with_suffix(".csv").read_bytes()
    # Of so few structures that there are no intervals nothing is said.
    pd.DataFrame(rows).assign(low=np.nan).to_csv(tmp_path / "c.csv", index=False)
    table2(metrics, few, SPLITS, METHODS, comparisons={"rmd17": tmp_path / "c.csv"})
    assert bold(few) == bold(before)
    assert "(too few to say of rMD17 ID: only the best there)" in few.with_suffix(".md").read_text()


def test_damaged_comparisons_are_named(tmp_path, metrics):
    (tmp_path / "c.csv").write_text("nothing\n")
    with pytest.raises(DataError, match=r"c\.csv: not a table of comparisons"):
        table2(metrics, tmp_path / "t.any", SPLITS, METHODS, comparisons={"rmd17": tmp_path / "c.csv"})


def test_a_reason_that_holds_for_all_of_a_method_is_given_once(tmp_path, long_table):
    everywhere = long_table["method"].eq("gp") & long_table["metric"].eq("spearman")
    long_table.loc[everywhere, "value"] = None
    long_table.loc[everywhere, "note"] = "one uncertainty for all atoms"
    long_table.loc[long_table["metric"].eq("nll"), ["value", "note"]] = [0.5, None]
    write_frame(long_table, tmp_path / "metrics.parquet", "metrics")
    splits = [("rmd17", "id", "ID"), ("rmd17", "ood", "OOD")]
    table2(tmp_path / "metrics.parquet", tmp_path / "t.md", splits, {"bll": "BLL", "gp": "GP"})
    notes = [line for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("* ")]
    assert notes == ["* GP, everywhere: Spearman in 6 of 6 fits (one uncertainty for all atoms)"]
