"""The winner's confusions on the test images."""

import plotly.graph_objects as go

from biotune_optuna.page.confusion import draw_confusion
from biotune_optuna.report.figures import NothingToShow, StudyFigure
from biotune_optuna.report.figures.shared import check_confirmed
from biotune_optuna.report.view import StudyView


@StudyFigure(
    name="confusion-matrix",
    title="What was taken for what",
    caption="Rows are what the image shows, columns what the model said; the shade is the share of"
    " the row.",
    chapter="errors",
    place=10,
)
def confusion_matrix(view: StudyView) -> go.Figure:
    """Return the winner's confusion on the test data: counts, shaded by share of the true class.

    Beyond 30 classes a matrix cannot be read: the 25 most frequent confusions are listed instead.
    """
    confirmation = check_confirmed(view)
    test, classes = confirmation.model_test, confirmation.classes
    counts = test.confusion if test else None
    if not counts or len(counts) != len(classes):
        raise NothingToShow("The test result holds no confusion matrix.")
    drawn = draw_confusion(counts, classes)
    if drawn is None:
        raise NothingToShow("Every test image was classified rightly.")
    return drawn
