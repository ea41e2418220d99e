"""What does each part of the genome contribute? The ablations of the paper, on your own data.

Four meanings of a gene that is above the threshold, and a genome without a threshold of its own.
The confirmed mean counts, trained on fresh seeds; the search's best value is also luck.
"""

from biotune_optuna import StudySpec, confirm, create_study

TRIALS = 30

variants = {
    "factor 0.1-10": {"variant": "exponential"},
    "gene over largest": {"variant": "scaled"},
    "gene above threshold": {"variant": "normalized"},
    "frozen or not": {"variant": "discriminative"},
    "fixed threshold": {"threshold": 0.5},
}

for name, options in variants.items():
    spec = StudySpec(
        model="tf_efficientnet_lite0", data="digits", image_size=64, train_size=400, **options
    )
    study = create_study(spec, storage="sqlite:///ablation.db", name=name)
    result = confirm(study.search(TRIALS))
    best = max(result["candidates"], key=lambda candidate: candidate["mean"])
    print(f"{name:22} {best['mean']:.3f} ± {best['stderr']:.3f}  {best['describe']}")
