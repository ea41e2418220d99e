"""The genome space against the formulas it states."""

import json

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune_optuna.errors import StudyError
from biotune_optuna.genome import Genome, GenomeSpace
from biotune_optuna.recipe import MODES, BlockRecipe, Recipe

BLOCKS = [BlockRecipe(name, 1.0, (f"{name}.w",)) for name in ("stem", "one", "two", "head")]
genes = st.floats(0, 1, allow_subnormal=False)


def paper_space() -> GenomeSpace:
    return GenomeSpace(BLOCKS, head_trains=False, lr=1e-3)


@given(st.tuples(*[genes] * 5))
def test_multipliers_follow_the_formula(values: tuple[float, ...]) -> None:
    *nu, threshold = values
    expected = [10 ** (2 * (v - 0.5)) if v > threshold else 0.0 for v in nu]
    assert paper_space().multipliers(values).tolist() == pytest.approx(expected, rel=1e-12)


@given(st.tuples(*[genes] * 5))
def test_the_head_trains_by_default(values: tuple[float, ...]) -> None:
    space = GenomeSpace(BLOCKS)
    expected = [*(v > values[-1] for v in values[:3]), True]
    assert space.mask(values).tolist() == expected
    assert (space.multipliers(values) > 0).tolist() == expected


@given(st.tuples(*[genes] * 5))
def test_repair_makes_valid_and_leaves_valid_alone(values: tuple[float, ...]) -> None:
    space = paper_space()
    repaired = space.repair(values)
    assert space.is_valid(repaired)
    assert ((repaired >= 0) & (repaired <= 1)).all()
    if space.is_valid(values):
        assert repaired.tolist() == list(values)


def test_without_a_threshold_nothing_is_frozen() -> None:
    space = GenomeSpace(BLOCKS, threshold=None, lr=1e-3)
    assert space.names == tuple(f"gene.{block.name}" for block in BLOCKS)
    genes = [0.0, 0.25, 0.5, 1.0]
    assert space.multipliers(genes) == pytest.approx([0.1, 10**-0.5, 1.0, 10.0])
    assert space.is_valid([0.0] * 4)
    frozen = Recipe.from_multipliers(BLOCKS, [0.0, 0.0, 1.0, 2.0], lr=1e-3)
    decoded = space.encode(frozen).decode()
    assert list(decoded.multipliers.values()) == pytest.approx([0.1, 0.1, 1.0, 2.0])
    assert GenomeSpace.from_dict(space.to_dict()) == space


def test_variants() -> None:
    values = [0.2, 0.4, 0.6, 0.8, 0.3]

    def multipliers(variant: str) -> list[float]:
        space = GenomeSpace(BLOCKS, variant=variant, head_trains=False)
        return space.multipliers(values).tolist()

    assert multipliers("scaled") == pytest.approx([0, 0.4 / 0.8, 0.6 / 0.8, 1])
    assert multipliers("normalized") == pytest.approx([0, 0.1 / 0.5, 0.3 / 0.5, 1])
    assert multipliers("discriminative") == [0, 1, 1, 1]


def test_a_block_that_trains_has_a_rate() -> None:
    scaled = GenomeSpace(BLOCKS, variant="scaled", threshold=0.0)
    assert scaled.multipliers([1e-9, 0.0, 0.5, 0.8]) == pytest.approx([1e-3, 0, 0.625, 1])
    normalized = GenomeSpace(BLOCKS, variant="normalized")
    assert normalized.multipliers([0.2, 0.4, 0.8, 0.1, 0.3]) == pytest.approx([0, 0.2, 1, 1e-3])


@given(
    st.lists(
        st.one_of(st.just(0.0), st.floats(-0.97, 1).map(lambda e: 10**e)), min_size=3, max_size=3
    ),
    st.floats(-0.97, 1).map(lambda e: 10**e),
    st.booleans(),
)
def test_encode_inverts_decode(body: list[float], head: float, searched: bool) -> None:
    space = GenomeSpace(BLOCKS, threshold="gene" if searched else 0.01)
    recipe = Recipe.from_multipliers(BLOCKS, [*body, head], lr=3e-3)
    decoded = space.encode(recipe).decode()
    assert decoded.frozen == recipe.frozen
    assert decoded.lr == pytest.approx(3e-3)
    assert list(decoded.multipliers.values()) == pytest.approx([*body, head], rel=0.05)


def test_encode_folds_the_rate_where_it_is_fixed() -> None:
    space = GenomeSpace(BLOCKS, lr=1e-3)
    decoded = space.encode(Recipe.full(BLOCKS, lr=5e-3)).decode()
    assert decoded.lr == 1e-3
    assert list(decoded.multipliers.values()) == pytest.approx([5.0] * 4)


def test_a_batch_is_decoded_row_by_row() -> None:
    space = GenomeSpace(BLOCKS)
    batch = np.random.default_rng(0).random((7, 5))
    rows = np.stack([space.multipliers(row) for row in batch])
    assert np.array_equal(space.multipliers(batch), rows)


def test_suggest_goes_through_optuna() -> None:
    space = GenomeSpace(BLOCKS, weight_decay=(1e-4, 1e-1))
    study = optuna.create_study()
    genome = space.encode(Recipe.full(BLOCKS, lr=2e-3, weight_decay=1e-2))
    study.enqueue_trial(genome.params)
    trial = study.ask()
    assert space.suggest(trial) == genome
    assert space.genome(trial.params) == genome
    assert trial.distributions == space.distributions()


def test_a_space_survives_json() -> None:
    space = GenomeSpace(BLOCKS, threshold=0.25, lr=1e-3, weight_decay=(1e-4, 1e-2))
    again = GenomeSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.names == space.names
    assert again != paper_space()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "cubic"}, "'cubic' is unknown"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"lr": (1e-2, 1e-3)}, "lr bounds"),
        ({"lr": 0}, "lr 0 is out of range"),
        ({"weight_decay": (0, 1)}, "weight_decay bounds"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        GenomeSpace(BLOCKS, **options)


def test_bad_genomes_are_named() -> None:
    space = paper_space()
    with pytest.raises(StudyError, match="3 genes"):
        Genome(space, (0.1, 0.2, 0.3))
    with pytest.raises(StudyError, match=r"gene 'gene\.one' is 1\.5"):
        Genome(space, (0.1, 1.5, 0.3, 0.2, 0.2))
    with pytest.raises(StudyError, match=r"'gene\.stem' is missing"):
        space.genome({})
    with pytest.raises(StudyError, match="repeat"):
        GenomeSpace([BLOCKS[0], BLOCKS[0]])
    with pytest.raises(StudyError, match="'threshold'"):
        GenomeSpace([BlockRecipe("threshold", 1.0)])
    assert GenomeSpace([BlockRecipe("threshold", 1.0)], threshold=None).n_genes == 1


WIDE = {"modes": True, "training": {"augment": ("none", "crop"), "length": (1.0, 2.0)}}


@given(st.tuples(*[genes] * 5))
def test_a_gene_says_how_its_block_trains(values: tuple[float, ...]) -> None:
    *nu, threshold = values
    recipe = Genome(GenomeSpace(BLOCKS, modes=True), values, {"lr": 1e-3}).decode()
    for gene, block in zip(nu[:-1], recipe.blocks[:-1], strict=True):
        assert block.frozen == (gene <= threshold)
        start, width, mode = next(
            part
            for part in ((0.5, 0.5, "full"), (0.25, 0.25, "low-rank"), (0.0, 0.25, "norms"))
            if gene >= part[0]
        )
        if not block.frozen:
            assert block.mode == mode
            assert block.multiplier == pytest.approx(10 ** (2 * ((gene - start) / width - 0.5)))
    assert recipe.blocks[-1].mode == "full"
    assert not recipe.blocks[-1].frozen


@given(
    st.lists(
        st.tuples(st.sampled_from(MODES), st.floats(-0.95, 0.95), st.booleans()),
        min_size=3,
        max_size=3,
    )
)
def test_recipes_with_modes_and_training_survive_encoding(body) -> None:
    space = GenomeSpace(BLOCKS, **WIDE)
    multipliers = [10**log if trains else 0.0 for _, log, trains in body]
    recipe = Recipe.from_multipliers(
        BLOCKS, [*multipliers, 1.0], lr=5e-3, modes=[*(mode for mode, *_ in body), "full"],
        training={"augment": "crop", "length": 1.0},
    )  # fmt: skip
    again = space.genome(space.encode(recipe).params).decode()
    assert again.modes == recipe.modes
    assert again.training == recipe.training
    slow = [m for m in recipe.multipliers.values() if 0 < m < 0.12]  # genes below 0.01 are clipped
    if not slow:
        assert list(again.multipliers.values()) == pytest.approx(
            list(recipe.multipliers.values()), rel=1e-6
        )


def test_a_wide_space_is_stored_and_its_parameters_are_asked_for() -> None:
    space = GenomeSpace(BLOCKS, **WIDE)
    again = GenomeSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.names[-2:] == ("train.augment", "train.length")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        genome = space.suggest(study.ask())
        assert space.genome(genome.params) == genome
        seen.add(tuple(genome.decode().training.values()))
    assert seen == {(a, n) for a in ("none", "crop") for n in (1.0, 2.0)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"training": {"colour": ("no", "yes")}},
            "training gene 'colour' is unknown; choose among",
        ),
        ({"training": {"ema": (0.0,)}}, "training gene 'ema' has the values [0.0]; give at least"),
        (
            {"training": {"ema": (0.9, 0.9)}},
            "give at least two different ones, the usual one first",
        ),
        ({"modes": True, "variant": "scaled"}, "modes need the variant 'exponential'"),
        ({"modes": True, "threshold": 0.3}, "modes need the threshold 'gene' or None"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(options, said) -> None:
    with pytest.raises(StudyError) as error:
        GenomeSpace(BLOCKS, **options)
    assert said in str(error.value)
