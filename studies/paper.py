"""The protocol of the BioTune paper to the letter, on one of its data sets.

Population 10, three elites, ten generations: 140 evaluations of three trainings each, up to 30
epochs, on alternating halves of the training images; then one test. That wants a GPU. Flowers-102
and the weights are downloaded; any other data set of the paper goes by its name, your own by its
folder. The same call goes on where it stopped, and on several machines with a shared storage.
"""

from biotune_optuna import StudySpec, confirm, create_study, write_report

TRIALS = 140

spec = StudySpec.paper(model="resnet50", data="flowers102")
study = create_study(spec, storage="sqlite:///paper.db", name="flowers102-resnet50")
result = confirm(study.search(TRIALS))

for test in result["tests"]:
    print(f"{test['name']:14} {test['score']:.4f}  (95 % {test['low']:.4f} to {test['high']:.4f})")
print(write_report(study.optuna, "paper.html"))
