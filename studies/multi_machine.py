"""One study on any number of machines: run this very script on each of them.

The database is all that they share. Whoever comes first creates the study, the others join it, and
each of them ends when the study has its trials:

    python multi_machine.py postgresql+psycopg://user@host/studies path/to/images

A machine that has the images at another place simply names it; what counts is that they are the
same images. Without arguments the workers are two processes on this machine, with one SQLite file.
"""

import subprocess
import sys

from biotune_optuna import StudySpec, create_study

TRIALS = 30


def work(storage: str, data: str) -> None:
    spec = StudySpec(model="tf_efficientnet_lite0", data=data, image_size=64, train_size=400)
    study = create_study(spec, storage=storage, name="together")
    study.search(TRIALS)
    print(f"{len(study.study.trials)} trials, best {study.study.best_value:.3f}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(sys.argv[1], sys.argv[2])
    else:
        command = [sys.executable, __file__, "sqlite:///together.db", "digits"]
        workers = [subprocess.Popen(command) for _ in range(2)]
        sys.exit(max(worker.wait() for worker in workers))
