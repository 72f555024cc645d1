"""One loop for every network: recipes as data, TF-style RMSProp, averages, checkpoints."""

from mobilefit.train.batchnorm import recalibrate_bn
from mobilefit.train.evaluate import Evaluation, evaluate, evaluation_of, logits_of
from mobilefit.train.loop import CHECKPOINT, FitResult, Stepper, TrainingDiverged, fit
from mobilefit.train.optim import RMSpropTF
from mobilefit.train.recipe import RECIPES, Recipe, recipe

__all__ = [
    "CHECKPOINT", "RECIPES", "Evaluation", "FitResult", "RMSpropTF", "Recipe", "Stepper", "TrainingDiverged", "evaluate",
    "evaluation_of", "fit", "logits_of", "recalibrate_bn", "recipe",
]  # fmt: skip
