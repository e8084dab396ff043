"""What the paper measures on frozen features: 5 nearest neighbours, a linear classifier, and how far from collapse.

Functions of tensors: features (n, f) float32, labels (n,) int64.
"""

from wmse.probes.linear import linear_accuracy
from wmse.probes.neighbours import knn_accuracy, knn_predict, nearest, vote
from wmse.probes.spread import embedding_spread, principal_plane

__all__ = ["embedding_spread", "knn_accuracy", "knn_predict", "linear_accuracy", "nearest", "principal_plane", "vote"]
