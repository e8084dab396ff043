"""The probes at CIFAR-10's size: 5-nn against the bare product and scikit-learn, the linear one against a loop."""

from __future__ import annotations

import statistics

import torch
from timing import Table, alternate, peak_memory, ratio
from torch import Tensor, nn

from wmse.probes import knn_accuracy, linear_accuracy

N, M, F, CLASSES = 50_000, 10_000, 512, 10
EPOCHS = 500


def features(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gaussian classes through a ReLU, as pooled features of a ResNet look: train, its labels, test, its labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.15 * torch.randn(CLASSES, F, generator=generator)
    parts = []
    for n in (N, M):
        labels = torch.randint(0, CLASSES, (n,), generator=generator)
        parts += [(centres[labels] + torch.randn(n, F, generator=generator)).relu_(), labels]
    return tuple(part.to(device) for part in parts)


def measure(device: torch.device) -> list[Table]:
    return [_knn(device), _linear(device)]


def _knn(device: torch.device) -> Table:
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, test, test_labels = features(device)
    product = torch.empty(500, N, device=device)
    accuracies = {}

    def bare() -> None:
        for part in test.split(500):
            torch.mm(part, train.T, out=product)

    def ours() -> None:
        accuracies["ours"] = knn_accuracy(train, labels, test, test_labels)

    model = KNeighborsClassifier(5, algorithm="brute").fit(train.cpu().numpy(), labels.cpu().numpy())

    def sklearn() -> None:
        accuracies["scikit-learn"] = 100 * model.score(test.cpu().numpy(), test_labels.cpu().numpy())

    product_s, ours_s, sklearn_s = alternate({"bare": bare, "ours": ours, "sklearn": sklearn}, 5, device).values()
    return Table(
        "5-nn",
        ["ours, s", "ours / bare product", "scikit-learn / ours", "memory above the features, MB", "accuracies"],
        f"{N:,} x {M:,} x {F} float32; the bare product goes by parts into memory that is there already; scikit-learn's"
        " brute force on the same features.",
        [
            [
                f"{statistics.median(ours_s):.2f}",
                ratio(ours_s, product_s),
                ratio(sklearn_s, ours_s),
                f"{peak_memory(ours, device) / 1e6:.0f}",
                " = ".join(f"{value:.2f} %" for value in accuracies.values()),
            ]
        ],
    )


def plain_linear(data: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> float:
    """The authors' loop with torch's own layer, loss, optimiser and schedule: top-1 in percent."""
    train, labels, test, test_labels = data
    generator, bound = torch.Generator().manual_seed(seed), F**-0.5
    classifier = nn.Linear(F, CLASSES)
    nn.init.uniform_(classifier.weight, -bound, bound, generator)
    nn.init.uniform_(classifier.bias, -bound, bound, generator)
    classifier.to(train.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2, weight_decay=5e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-6 / 1e-2) ** (1 / EPOCHS))
    for _ in range(EPOCHS):
        for index in torch.randperm(N, generator=generator).to(train.device).view(-1, 1000):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(train[index]), labels[index]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        return 100 * (classifier(test).argmax(dim=1) == test_labels).double().mean().item()


def _linear(device: torch.device) -> Table:
    data, found = features(device), {}

    def ours() -> None:
        generator = torch.Generator().manual_seed(0)
        found["ours"] = linear_accuracy(*data, num_classes=CLASSES, generator=generator, epochs=EPOCHS)[1]

    def plain() -> None:
        found["plain"] = plain_linear(data, 0)

    ours_s, plain_s = alternate({"ours": ours, "plain": plain}, 3, device).values()
    return Table(
        "Linear probe",
        ["ours, s", "plain loop / ours", "top-1: ours", "top-1: plain loop"],
        f"{EPOCHS} epochs on {N:,} features, the same initial weights and orders.",
        [
            [
                f"{statistics.median(ours_s):.1f}",
                ratio(plain_s, ours_s),
                f"{found['ours']:.2f} %",
                f"{found['plain']:.2f} %",
            ]
        ],
    )
