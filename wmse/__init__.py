"""Reproduction of "Whitening for Self-Supervised Representation Learning" (W-MSE, ICML 2021).

The core is made of functions of tensors (`wmse.whitening`, `wmse.losses`, `wmse.views`, `wmse.probes`); files,
configuration and devices stay at the edge (`wmse.cli` and the stages it calls: prepare, pretrain, evaluate, report).

For notebooks, the names in `__all__` are stable. What they need is loaded by their first use, not with this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmse import losses, whitening
    from wmse.api import pretrain
    from wmse.image_features import folder_features
    from wmse.losses import WMSELoss
    from wmse.pretrained import load_encoder
    from wmse.probes import knn_accuracy, nearest

__version__ = "0.1.0"
__all__ = [
    "WMSELoss",
    "__version__",
    "folder_features",
    "knn_accuracy",
    "load_encoder",
    "losses",
    "nearest",
    "pretrain",
    "whitening",
]

_MODULES = {
    "WMSELoss": "wmse.losses",
    "folder_features": "wmse.image_features",
    "knn_accuracy": "wmse.probes",
    "load_encoder": "wmse.pretrained",
    "nearest": "wmse.probes",
    "pretrain": "wmse.api",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in __all__:
        return importlib.import_module(f"wmse.{name}")
    raise AttributeError(f"module 'wmse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
