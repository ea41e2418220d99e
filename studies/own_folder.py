"""Tune a network on your own images: a folder with one subfolder per class, or a CSV manifest.

    python own_folder.py path/to/folder

The same call goes on where it stopped. What remains: a report and a model folder.
"""

import sys

from biotune_optuna import StudySpec, confirm, create_study, export_winner, write_report

TRIALS = 60

folder = sys.argv[1]
study = create_study(StudySpec(model="resnet50", data=folder), storage="sqlite:///own.db")
study.search(TRIALS)  # in all: what is finished counts

result = confirm(study)  # fresh seeds, rivals, and one look at the test images
for test in result.tests:
    print(f"{test.name:14} {test.score:.3f}  (95 % {test.low:.3f} to {test.high:.3f})")
print(f"{result.winner.name} was chosen: {result.why}")

print(export_winner(study, "own-model"))
print(write_report(study.study, "own-report.html"))
