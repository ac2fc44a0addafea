import numpy as np
import pytest

from histoscribe import plot
from histoscribe.data.cells import Outlines
from histoscribe.types import Box

BOX = Box(100.0, 40.0, 330.0, 210.0)


def image(rng):
    return rng.integers(0, 255, (21, 33, 3), dtype=np.uint8)


def two_nuclei():
    inside = np.array([[150, 80], [160, 80], [155, 90]], np.float32)
    outside = np.array([[5, 5], [9, 5], [9, 9], [5, 9]], np.float32)
    return Outlines(np.concatenate([inside, outside]), np.array([0, 3, 7], np.int64))


def is_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def test_only_nuclei_of_the_box_are_drawn_and_closed():
    (line,) = plot._lines_in(two_nuclei(), BOX)
    assert line.shape == (4, 2)
    np.testing.assert_array_equal(line[0], line[-1])


def test_tissue_shows_the_box_in_um_with_y_down():
    rng = np.random.default_rng(0)
    centres = np.array([[200.0, 100.0], [300.0, 150.0], [310.0, 60.0]])
    figure = plot.draw_tissue(image(rng), BOX, two_nuclei(), (centres, 27.5))
    (axes,) = figure.axes
    assert axes.get_xlim() == (100.0, 430.0)
    assert axes.get_ylim() == (250.0, 40.0)
    assert is_png(plot.to_png(figure))


def test_same_figure_same_bytes():
    first, second = (
        plot.to_png(plot.draw_tissue(image(np.random.default_rng(1)), BOX)) for _ in range(2)
    )
    assert first == second


def test_measured_and_predicted_share_the_scale_of_the_measured():
    rng = np.random.default_rng(2)
    measured = rng.normal(size=13)
    gene = plot.GeneMap("Gfap", measured, np.where(np.arange(13) == 3, np.nan, 9.0), 0.25)
    figure = plot.draw_gene_maps([gene], rng.uniform(0, 900, (13, 2)), 27.5, "log1p(CP10k)")
    left, right = (axes.collections[0] for axes in figure.axes[:2])
    assert left.norm is right.norm
    assert right.norm.vmax <= measured.max()
    assert "PCC 0.25" in figure.axes[1].get_title(loc="left")
    assert is_png(plot.to_png(figure))


def test_a_gene_nobody_measured_and_an_undefined_pcc_still_draw():
    gene = plot.GeneMap("X", np.full(5, np.nan), np.zeros(5), float("nan"))
    xy = np.arange(10.0).reshape(5, 2) * 70
    figure = plot.draw_gene_maps([gene], xy, 20.0, "counts")
    assert "not defined" in figure.axes[1].get_title(loc="left")
    plot.to_png(figure)


def test_genes_of_an_upright_slide_stand_side_by_side():
    rng = np.random.default_rng(3)
    maps = [plot.GeneMap(name, rng.random(7), rng.random(7), 0.1) for name in "ABC"]
    xy = np.stack([rng.uniform(0, 90, 7), np.linspace(0, 900, 7)], axis=1)
    figure = plot.draw_gene_maps(maps, xy, 20.0, "counts")
    assert figure.get_figwidth() > figure.get_figheight() / 2
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes]
    assert [name for name in titles if name in "ABC" and name] == ["A", "B", "C"]
    plot.to_png(figure)


def test_scores_keep_their_order():
    values = np.array([0.3, 0.1])
    figure = plot.draw_scores(["bitro", "mean"], values, values - 0.1, values + 0.1, "PCC")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bitro", "mean"]
    assert axes.yaxis_inverted()
    plot.to_png(figure)


@pytest.mark.parametrize(
    ("width", "wanted"), [(330.0, 50.0), (1000.0, 200.0), (6500.0, 1000.0), (9.0, 1.0)]
)
def test_scale_bar_is_round_and_about_a_fifth(width, wanted):
    assert plot.scale_bar_um(width) == wanted


def test_survival_has_steps_ticks_and_numbers_at_risk():
    def curve(name, days):
        step = np.concatenate([[0.0], days])
        alive = np.linspace(1.0, 0.2, len(step))
        died = np.arange(len(days)) % 2 == 0
        return plot.SurvivalCurve(name, step, alive, alive - 0.1, alive + 0.1, days, died)

    curves = [
        curve("high", np.arange(100.0, 900.0, 100)),
        curve("low", np.arange(300.0, 1500.0, 150)),
    ]
    figure = plot.draw_survival(curves, "model, log-rank p 0.01")
    above, below = figure.axes
    assert below.get_xlabel() == "years"
    assert above.get_xlim()[1] == pytest.approx(1350 / 365.25)
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels == ["high (8 patients, 4 died)", "low (8 patients, 4 died)"]
    ticks = [tick for tick in above.get_xticks() if tick <= 1350 / 365.25]
    counts = [text.get_text() for text in below.texts]
    wanted = [str(one.n_at_risk(tick * 365.25)) for one in curves for tick in ticks]
    assert counts == wanted
    assert counts[0] == "8"
    assert is_png(plot.to_png(figure))
    short = plot.draw_survival([curve("all", np.arange(10.0, 90.0, 20))])
    assert short.axes[1].get_xlabel() == "days"
