"""One loop for every network: recipes as data, averages, checkpoints, one process or many."""

from mobilefit.train.batchnorm import recalibrate_bn
from mobilefit.train.checkpoint import CHECKPOINT
from mobilefit.train.distillation import SoftTargets
from mobilefit.train.evaluate import Evaluation, evaluate, evaluation_of, logits_of
from mobilefit.train.loop import Stepper, fit
from mobilefit.train.ranks import open_fabric
from mobilefit.train.recalibration import calibration_batches, recalibrated
from mobilefit.train.recipe import RECIPES, Recipe, recipe
from mobilefit.train.run import BEST, FitResult
from mobilefit.train.trainer import TrainingDiverged

__all__ = [
    "BEST", "CHECKPOINT", "RECIPES", "Evaluation", "FitResult", "Recipe", "SoftTargets", "Stepper",
    "TrainingDiverged", "calibration_batches",
    "evaluate", "evaluation_of", "fit", "logits_of", "open_fabric", "recalibrate_bn", "recalibrated", "recipe",
]  # fmt: skip
