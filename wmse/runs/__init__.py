"""A run's folder: where its files lie, what its records vouch for, its evaluation and its verification.

Importing these modules does not import torch.
"""
