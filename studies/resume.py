"""Stop a study at any moment and go on: the trials are those of a study that never stopped.

One study is searched in one go. Another one, with the same seed, is given a part of its trials, is
left alone and is taken up again from the database alone, as a new process would. Their values are
compared bit by bit.
"""

from biotune_optuna import StudySpec, create_study, load_study

STORAGE = "sqlite:///resume.db"
TRIALS = 14

spec = StudySpec(
    model="tf_efficientnet_lite0", data="digits", image_size=32, train_size=200, val_size=400
)

whole = create_study(spec, storage=STORAGE, name="in-one-go").search(TRIALS)

create_study(spec, storage=STORAGE, name="in-two-parts").search(TRIALS // 2)
parts = load_study("in-two-parts", storage=STORAGE).search(TRIALS)  # in all, not in addition

for one, other in zip(whole.study.trials, parts.study.trials, strict=True):
    assert one.params == other.params, (one.number, one.params, other.params)
    assert one.value == other.value, (one.number, one.value, other.value)
    print(f"trial {one.number:2}  {one.user_attrs['role']:10} {one.value}  equal in both studies")
