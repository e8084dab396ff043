"""Reproduction of "Whitening for Self-Supervised Representation Learning" (W-MSE, ICML 2021).

The core is made of functions of tensors (`wmse.whitening`, `wmse.losses`, `wmse.views`, `wmse.probes`); files,
configuration and devices stay at the edge (`wmse.cli` and the stages it calls: prepare, pretrain, evaluate, report).
"""

__version__ = "0.1.0"
