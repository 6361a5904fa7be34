"""Learning rates that change from step to step: PyTorch's schedulers, with the same numbers."""

from tgrad.optim.lr_scheduler.base import LRScheduler, SequentialLR
from tgrad.optim.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from tgrad.optim.lr_scheduler.cycle import OneCycleLR
from tgrad.optim.lr_scheduler.factors import ConstantLR, ExponentialLR, LambdaLR, LinearLR, MultiStepLR, StepLR
from tgrad.optim.lr_scheduler.plateau import ReduceLROnPlateau

__all__ = [
    "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LRScheduler", "LambdaLR",
    "LinearLR", "MultiStepLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip
