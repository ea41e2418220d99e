"""The genome space against the formulas it states."""

import json

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune_optuna.errors import StudyError
from biotune_optuna.genome import Genome, GenomeSpace
from biotune_optuna.recipe import BlockRecipe, Recipe

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
