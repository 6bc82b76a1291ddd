"""Mutable training state: model, optimizer, step and loss scaler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class TrainState:
    """The model, its optimizer and the progress of the run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps taken, including skipped ones."""
    bad_in_a_row: int = 0
    """Most recent consecutive steps skipped because the loss or gradient was not finite."""
    scaler: torch.amp.GradScaler | None = None
    """Loss scaler for fp16."""
