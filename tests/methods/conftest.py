"""What the comparisons with the plain references share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def really_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes norms and softmax in float32 whatever the model's dtype, which would hide small errors."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
