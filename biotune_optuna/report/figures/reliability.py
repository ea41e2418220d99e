"""What the model's confidence is worth on the test images."""

import plotly.graph_objects as go

from biotune_optuna.confirmation.calibrate import FEWEST_IMAGES
from biotune_optuna.page.style import BLUE, GREY, VERMILION, finish
from biotune_optuna.page.text import plural
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import check_confirmed
from biotune_optuna.report.view import StudyView


@StudyFigure(
    name="reliability",
    title="Reliability of the model's confidence",
    caption="Test images in ten bins by their highest probability: its mean against the share that"
    " is right. On the diagonal a confidence of 90 % means that nine of ten are right; below it the"
    " model is too sure. Larger points are of more images.",
    chapter="trust",
    place=10,
)
def reliability(view: StudyView) -> go.Figure:
    """Confidence against accuracy on the test images, as the networks say it and tempered."""
    confirmed = check_confirmed(view)
    found = confirmed.calibration
    if found is None and 0 < confirmed.n_val < FEWEST_IMAGES:
        raise NothingToShow(
            f"The probabilities are the networks' own. To temper them takes {FEWEST_IMAGES}"
            f" validation images; there are {confirmed.n_val}."
        )
    if found is None or not found.bins_after:
        raise NothingToShow("The confirmation holds no confidences of test images.")
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot"}, showlegend=False
    )
    for words, bins, colour in (
        ("as the networks say", found.bins_before, BLUE),
        ("tempered", found.bins_after, VERMILION),
    ):
        total = sum(n for n, _, _ in bins)
        figure.add_scatter(
            x=[sure for _, sure, _ in bins],
            y=[right for _, _, right in bins],
            mode="lines+markers",
            name=words,
            marker={"color": colour, "size": [6 + 18 * (n / total) ** 0.5 for n, _, _ in bins]},
            line={"color": colour, "width": 1},
            text=[
                f"{words}: {plural(int(n), 'image')}, confidence {sure:.3f}, right {right:.3f}"
                for n, sure, right in bins
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(title_text="confidence", range=[0, 1.02])
    figure.update_yaxes(title_text="share that is right", range=[0, 1.02])
    return finish(figure, "Confidence against accuracy", height=380, legend=True)
