"""A head fitted by logistic regression, in real networks."""

import logging

import numpy as np
import pytest
import torch

from biotune_optuna.errors import DataError, ModelError
from biotune_optuna.finetune.probe import linear_output
from biotune_optuna.finetune.results import StopTraining
from biotune_optuna.models.weights import meta_model
from biotune_optuna.recipe import Recipe
from tests.kit.networks import curve, make_images, make_trainer, recipe_for, state_of


def fitted(trainer):
    return Recipe.fitted_probe(trainer.blocks)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_only_the_output_layer_moves_and_one_pass_is_enough(images, split, name):
    trainer = make_trainer(images, name)
    trainer.reset(4)
    before = state_of(trainer)
    result = trainer.fit(fitted(trainer), *split, seed=4)
    after = state_of(trainer)
    layer = linear_output(trainer.model)
    own = {id(p) for p in layer.parameters()}
    named = {n for n, p in trainer.model.named_parameters() if id(p) in own}
    assert {n for n in before if not torch.equal(before[n], after[n])} == named
    train, val = split
    assert (result.images_forward, result.images_backward) == (len(train) + len(val), 0)
    assert result.trainable_parameters == sum(p.numel() for p in layer.parameters())
    assert len(result.epochs) == result.best_epoch == 1
    probs = trainer.predict(val)
    assert np.array_equal(probs.argmax(1), result.predictions)
    labels = images.labels(val).cpu().numpy()
    recalls = [(probs.argmax(1) == labels)[labels == c].mean() for c in range(3)]
    assert result.score == pytest.approx(np.mean(recalls))


def test_it_beats_steps_that_have_not_converged(images, split):
    trainer = make_trainer(images, epochs=1)
    steps = trainer.fit(Recipe.linear_probe(trainer.blocks, lr=1e-3), *split, seed=0)
    probe = trainer.fit(fitted(trainer), *split, seed=0)
    assert probe.epochs[0].train_loss < steps.epochs[0].train_loss


@pytest.mark.parametrize("settings", [{}, {"augment": "flip"}, {"mixup": 0.2}])
def test_cached_or_not_and_whatever_the_settings_do_to_images_it_is_the_same(settings):
    images = make_images()
    split = np.arange(40), np.arange(40, 60)
    cached, plain = (make_trainer(images, prefix_cache_mb=mb, **settings) for mb in (512, 0))
    first, second = (t.fit(fitted(t), *split, seed=1) for t in (cached, plain))
    assert first.cache_misses == 60
    assert second.cache_misses == 0
    assert first.score == second.score
    assert first.epochs[0].train_loss == pytest.approx(second.epochs[0].train_loss, rel=1e-3)


def test_it_repeats_itself_whatever_ran_before(images, split):
    trainer = make_trainer(images)
    first = trainer.fit(fitted(trainer), *split, seed=2)
    weights = state_of(trainer)
    trainer.fit(recipe_for(trainer, [1.0]), *split, seed=9)
    again = trainer.fit(fitted(trainer), *split, seed=2)
    assert curve(first) == curve(again)
    assert all(torch.equal(weights[n], t) for n, t in state_of(trainer).items())


def test_a_network_that_does_not_end_in_one_linear_layer_is_trained_by_steps(images, split, caplog):
    trainer = make_trainer(images)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    trainer.model.fc.__class__ = Doubled
    squared = trainer.model.forward
    trainer.model.forward = lambda x: squared(x).square()  # the scores are another's
    with caplog.at_level(logging.WARNING, logger="biotune_optuna.finetune"):
        result = trainer.fit(fitted(trainer), *split, seed=0)
    assert "does not end in one linear layer" in caplog.text
    assert "at rate 0.01" in caplog.text
    assert len(result.epochs) == trainer.settings.epochs
    assert result.images_backward > 0


@pytest.mark.parametrize(
    ("name", "ends_so"),
    [("resnet18", True), ("dla34", True), ("deit_tiny_distilled_patch16_224", False)],
)
def test_which_layer_computes_the_scores(name, ends_so):
    layer = linear_output(meta_model(name, num_classes=7))
    assert (layer is not None) == ends_so
    if ends_so:
        assert layer.weight.shape[0] == 7


def test_a_pointwise_convolution_as_output_layer_is_fitted_too():
    images = make_images(size=64)
    trainer = make_trainer(images, "dla46x_c")
    before = trainer.model.fc.weight.clone()
    result = trainer.fit(fitted(trainer), np.arange(40), np.arange(40, 60), seed=0)
    assert len(result.epochs) == 1
    assert not torch.equal(before, trainer.model.fc.weight)


def test_a_callback_hears_of_the_pass_and_may_stop(images, split):
    trainer, heard = make_trainer(images), []

    def stop(record):
        heard.append(record.score)
        raise StopTraining

    result = trainer.fit(fitted(trainer), *split, seed=0, on_epoch=stop)
    assert heard == [result.score]
    assert result.stopped == "callback"


def test_features_that_are_not_finite_count_as_diverged(images, split):
    trainer = make_trainer(images)
    with torch.no_grad():
        trainer._pristine["conv1.0.weight"].fill_(float("nan"))
    result = trainer.fit(fitted(trainer), *split, seed=0)
    assert result.diverged
    assert result.score == 0.0
    assert not result.epochs, "nor is it trained by steps then"


def test_what_cannot_be_fitted_is_refused(images):
    trainer = make_trainer(images)
    with pytest.raises(DataError, match="1 training images are too few"):
        trainer.fit(fitted(trainer), [0], seed=0)
    with pytest.raises(ModelError, match="must freeze all other blocks"):
        Recipe(Recipe.full(trainer.blocks, lr=0.1).blocks, lr=0.1, fitted=True)


def test_the_recipe_is_written_and_read(images, tmp_path):
    trainer = make_trainer(images)
    recipe = fitted(trainer)
    assert Recipe.load(recipe.save(tmp_path / "recipe.json")) == recipe
    by_steps = Recipe.linear_probe(trainer.blocks, lr=recipe.lr)
    assert "fitted" not in by_steps.to_dict()
    assert recipe.key() != by_steps.key()
    assert recipe.describe() == "head fitted by logistic regression, all else frozen"
