import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from forceuq.calibration import fit_calibrations, nll_surface
from forceuq.errors import DataError
from forceuq.figures import ensemble_size, recalibration, shift, surface
from forceuq.figures.ensemble_size import ensemble_size_figure
from forceuq.figures.recalibration import recalibration_figures
from forceuq.figures.shift import shift_figure
from forceuq.figures.style import COLORS, LINES, MARKERS, RC, look, save
from forceuq.figures.surface import surface_figure, write_surfaces
from forceuq.metric_tables import metrics_frame, write_frame
from forceuq.metrics import METRICS
from forceuq.predictions import write_predictions
from forceuq.tables import aggregate

SPLITS = [
    ("mptrj", "id", "ID"),
    ("mptrj", "near", "OOD Near"),
    ("mptrj", "mid", "OOD Mid"),
    ("mptrj", "far", "OOD Far"),
    ("rmd17", "id", "ID"),
    ("rmd17", "ood", "OOD"),
]
DATASETS = {"mptrj": "MPtrj", "rmd17": "rMD17"}
METHODS = {"bll": "BLL (NLML)", "ensemble": "Ensemble (LoRA)", "swag": "SWAG"}


@pytest.fixture
def metrics(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "dataset": dataset,
            "task": "t",
            "split": split,
            "method": method,
            "calibration": calibration,
            "seed": seed,
            "metric": metric,
            "value": float(
                rng.uniform(0.1, 0.5) if metric != "nll" else rng.uniform(-2, 1) + (calibration == "none") * 40
            ),
            "n_atoms": 10,
            "note": None,
        }
        for dataset, split, _ in SPLITS
        for method in METHODS
        for calibration in ("none", "decoupled")
        for seed in range(3)
        for metric in ("mae", "ece", "spearman", "nll")
    ]
    write_frame(metrics_frame(pd.DataFrame(rows)), tmp_path / "metrics.parquet", "metrics")
    return tmp_path / "metrics.parquet"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, to be looked at."""
    figures = []

    def keep(figure, output, data):
        figures.append(figure)
        save(figure, output, data)

    for module in (ensemble_size, recalibration, shift, surface):
        monkeypatch.setattr(module, "save", keep)
    return figures


def texts_in_place(figure):
    """Assert that every text lies on the canvas and none lies over another."""
    FigureCanvasAgg(figure).draw()
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn_ticks = axis._update_ticks()  # ticks beyond the limits exist, but are not drawn
            unseen |= {id(t.label1) for t in axis.get_major_ticks() if t not in drawn_ticks}
    shown = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        # The box of a slanted label is not where its letters are.
        if text.get_text().strip() and text.get_rotation() in (0.0, 90.0) and id(text) not in unseen
    ]
    canvas = figure.bbox
    assert len(shown) > 10
    for name, box in shown:
        assert box.x0 >= -0.5, name
        assert box.x1 <= canvas.x1 + 0.5, name
        assert box.y0 >= -0.5, name
        assert box.y1 <= canvas.y1 + 0.5, name
    for (one, a), (other, b) in itertools.combinations(shown, 2):
        overlap_x = min(a.x1, b.x1) - max(a.x0, b.x0)
        overlap_y = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert not (overlap_x > 1.0 and overlap_y > 1.0), (one, other)


def test_recalibration_figure_shows_its_data(tmp_path, metrics, drawn):
    outputs = {"bll": tmp_path / "f.png", "swag": tmp_path / "g.png"}
    recalibration_figures(metrics, outputs, METHODS, SPLITS, DATASETS)
    assert set(pd.read_csv(tmp_path / "g.csv")["method"]) == {"swag"}
    table = pd.read_csv(tmp_path / "f.csv")
    assert len(table) == 2 * len(SPLITS)
    means = aggregate(pd.read_parquet(metrics)).set_index(["dataset", "split", "method", "calibration", "metric"])
    for _, row in table.iterrows():
        for column, calibration in (("before", "none"), ("after", "decoupled")):
            mean = means.loc[row["dataset"], row["split"], "bll", calibration, row["metric"]]
            assert row[column] == pytest.approx(mean["mean"], rel=1e-15)
            assert row[f"{column}_std"] == pytest.approx(mean["std"], rel=1e-12)
    texts_in_place(drawn[0])
    # What is annotated is the change of what is drawn.
    ece = table[(table["dataset"] == "mptrj") & (table["metric"] == "ece")]
    expected = [f"{100 * (a - b) / b:+.0f}%" for a, b in zip(ece["after"], ece["before"], strict=True)]
    written = [t.get_text().replace("\N{MINUS SIGN}", "-") for t in drawn[0].axes[0].texts]
    assert written == expected


def test_shift_figure_shows_its_data(tmp_path, metrics, drawn):
    shift_figure(metrics, tmp_path / "f.png", SPLITS, METHODS, DATASETS, title="Recalibrated")
    table = pd.read_csv(tmp_path / "f.csv")
    assert len(table) == len(SPLITS) * len(METHODS) * 4
    texts_in_place(drawn[0])
    line = drawn[0].axes[0].get_lines()[0]
    own = table.query("dataset == 'mptrj' and method == 'bll' and metric == 'mae'")
    assert line.get_ydata() == pytest.approx(own["mean"].to_numpy())
    assert list(own["label"]) == ["ID", "OOD Near", "OOD Mid", "OOD Far"]
    assert drawn[0].axes[0].get_yscale() == "linear"
    # The one data set with two splits, by itself, and no bands where there is one seed.
    frame = pd.read_parquet(metrics)
    write_frame(frame[frame["seed"] == 0], metrics, "metrics")
    shift_figure(metrics, tmp_path / "g.png", SPLITS, {"bll": "BLL"}, {"rmd17": "rMD17"})
    texts_in_place(drawn[1])
    assert pd.read_csv(tmp_path / "g.csv")["std"].isna().all()
    assert not any(len(p.get_paths()) for axes in drawn[1].axes for p in axes.collections)
    # Errors that differ a hundredfold.
    far = (frame["metric"] == "mae") & (frame["split"] == "far")
    write_frame(frame.assign(value=frame["value"].where(~far, 100.0 * frame["value"])), metrics, "metrics")
    shift_figure(metrics, tmp_path / "h.png", SPLITS, METHODS, DATASETS)
    texts_in_place(drawn[2])
    assert drawn[2].axes[0].get_yscale() == "log"


def test_surface_figure_marks_what_was_fitted(tmp_path, block, metadata, drawn):
    write_predictions(tmp_path / "v.parquet", [block(400, a=0.3, b=3000.0)], metadata)
    fitted = fit_calibrations(tmp_path / "v.parquet", tmp_path / "c.json")
    nll_surface(tmp_path / "v.parquet", tmp_path / "s.parquet", np.linspace(-2, 2, 25), np.linspace(-2, 7, 31))
    surface_figure([(tmp_path / "s.parquet", tmp_path / "c.json", "BLL")], tmp_path / "f.png", "rMD17 ethanol")
    texts_in_place(drawn[0])
    table = pd.read_csv(tmp_path / "f.csv").set_index("what")
    assert len(table) == 25 * 31 + 3
    assert table.loc["decoupled", "log10_b"] == pytest.approx(np.log10(fitted[2].b))
    assert table.loc["surface", "nll"].min() >= table.loc["decoupled", "nll"] - 1e-12
    write_predictions(tmp_path / "w.parquet", [block(40)], {**metadata, "seed": 9})
    fit_calibrations(tmp_path / "w.parquet", tmp_path / "c.json")
    with pytest.raises(DataError, match="fitted on seed '9'; the surface is of '3'"):
        surface_figure([(tmp_path / "s.parquet", tmp_path / "c.json", "BLL")], tmp_path / "f.png")


def test_surfaces_side_by_side_show_each_method_above_its_own_least(tmp_path, block, metadata, drawn):
    fits = []
    for index, scale in enumerate((1.0, 0.0, 30.0)):
        found = block(400, a=0.3, b=3000.0)
        found = dataclasses.replace(found, spread=scale * found.spread)
        predictions, calibrations = tmp_path / f"v{index}.parquet", tmp_path / f"c{index}.json"
        write_predictions(predictions, [found], {**metadata, "method": f"m{index}"})
        fit_calibrations(predictions, calibrations)
        fits.append((predictions, calibrations, tmp_path / f"surfaces/m{index}.parquet", f"Method {index}"))
    write_surfaces(fits, tmp_path / "f.png", "rMD17 ethanol", log10_a=(-2, 2), log10_b=(-2, 7), points=15)
    texts_in_place(drawn[0])
    table = pd.read_csv(tmp_path / "f.csv")
    surfaces = table[table["what"] == "surface"]
    assert surfaces.groupby("method").size().to_dict() == {f"Method {i}": 225 for i in range(3)}
    flat = surfaces[surfaces["method"] == "Method 1"].groupby("log10_a")["nll"].nunique()
    assert (flat == 1).all(), "without a spread b changes nothing"
    least = surfaces.groupby("method")["nll"].min()
    titles = [axes.get_title() for axes in drawn[0].axes[:3]]
    assert titles[0].startswith(f"Method 0\nleast: {least['Method 0']:.2f}".replace("-", "\N{MINUS SIGN}"))


def test_ensemble_size_figure_shows_every_metric(tmp_path, drawn):
    rng = np.random.default_rng(0)
    keys = itertools.product(("id", "far"), {"e-2": 2, "e-3": 3, "e": 5}, range(2), METRICS)
    rows = [
        {
            "dataset": "mptrj",
            "task": "t",
            "split": split,
            "method": method,
            "calibration": "decoupled",
            "seed": seed,
            "metric": metric,
            "value": float(rng.uniform(0.1, 0.5)),
            "n_atoms": 10,
            "note": None,
        }
        for split, method, seed, metric in keys
    ]
    write_frame(metrics_frame(pd.DataFrame(rows)), tmp_path / "m.parquet", "metrics")
    sizes, splits = {2: "e-2", 3: "e-3", 5: "e"}, {"id": "ID", "far": "OOD Far"}
    ensemble_size_figure(tmp_path / "m.parquet", tmp_path / "f.png", "mptrj", sizes, splits, title="Deep ensemble")
    texts_in_place(drawn[0])
    table = pd.read_csv(tmp_path / "f.csv")
    assert len(table) == 2 * 3 * len(METRICS)
    own = table.query("split == 'far' and metric == 'spearman'")
    assert own["members"].tolist() == [2, 3, 5]
    spearman = drawn[0].axes[METRICS.index("spearman")]
    assert spearman.get_ylabel() == "Spearman"
    assert spearman.get_lines()[1].get_ydata() == pytest.approx(own["mean"].to_numpy())
    with pytest.raises(DataError, match="nothing of e-4 under 'decoupled' on mptrj/id"):
        ensemble_size_figure(tmp_path / "m.parquet", tmp_path / "f.png", "mptrj", {4: "e-4"}, splits)


def test_files_are_the_same_bytes_in_another_process(tmp_path, metrics):
    program = (
        "import sys; from pathlib import Path; from forceuq.figures.shift import shift_figure\n"
        f"shift_figure(Path({str(metrics)!r}), Path(sys.argv[1]), {SPLITS!r}, {METHODS!r}, {DATASETS!r})"
    )
    for name, seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program, str(tmp_path / name / "f.png")],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
    for suffix in ("png", "pdf", "csv"):
        assert (tmp_path / f"a/f.{suffix}").read_bytes() == (tmp_path / f"b/f.{suffix}").read_bytes(), suffix


def test_series_can_be_told_apart_and_text_can_be_read():
    looks = [tuple(map(str, look(index).values())) for index in range(21)]
    assert len(set(looks)) == len(looks)
    assert len(set(COLORS)) == len(set(MARKERS)) == len(COLORS) == len(LINES)
    assert all(RC[key] >= 7 for key in RC if key.endswith(("labelsize", "fontsize", "font.size")))


def test_what_is_missing_is_an_error(tmp_path, metrics):
    with pytest.raises(DataError, match="no ece of bll under 'temperature' on mptrj/id"):
        recalibration_figures(metrics, {"bll": tmp_path / "f.png"}, METHODS, SPLITS, DATASETS, after="temperature")
    with pytest.raises(DataError, match="nothing of these splits"):
        shift_figure(metrics, tmp_path / "f.png", SPLITS, {"gp": "GP"}, DATASETS)


def test_recalibration_figure_of_a_method_that_is_fitted_to_one_data_set(tmp_path, metrics):
    long_table = pd.read_parquet(metrics)
    write_frame(long_table[long_table["dataset"] == "mptrj"], tmp_path / "m.parquet", "metrics")
    outputs, bll = {"bll": tmp_path / "f.png"}, {"bll": METHODS["bll"]}
    recalibration_figures(tmp_path / "m.parquet", outputs, bll, SPLITS, DATASETS, fitted_to={"bll": ["mptrj"]})
    assert set(pd.read_csv(tmp_path / "f.csv")["dataset"]) == {"mptrj"}
    with pytest.raises(DataError, match="of bll under 'none' on rmd17"):
        recalibration_figures(tmp_path / "m.parquet", outputs, bll, SPLITS, DATASETS)
