"""The formulas of the image metrics, on feature vectors: one image a row, float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
"""[n, d], [m, d] -> [n, m]."""

ROWS = 1024
"""Rows of a matrix of pairs held at once."""

Counted = Callable[[Tensor], float]
"""From how often each group of images is counted [G] to a figure; ones give the figure itself."""

Distance = Callable[[Tensor, Tensor], Counted]
"""From feature vectors [n, d] and each one's group [n] to that, against one fixed reference. Groups are what a
bootstrap draws: it changes the counts, and what is costly has been done once.
"""


def plain(distance: Distance, x: Tensor) -> float:
    """The figure itself."""
    return distance(x, torch.zeros(len(x), dtype=torch.long))(torch.ones(1, dtype=torch.float64))


def scaled(distance: Distance, factor: float) -> Distance:
    """The distance times a factor."""

    def times(x: Tensor, groups: Tensor) -> Counted:
        counted = distance(x, groups)
        return lambda counts: factor * counted(counts)

    return times


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance between the Gaussians fitted to two sets (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    |m_x - m_y|^2 + Tr(C_x) + Tr(C_y) - 2 Tr((C_x C_y)^(1/2)), covariances over n - 1, x [n, d], y [m, d].

    With few images it is mostly bias: two draws from one distribution are far apart.
    """
    return plain(frechet_to(y), x)


def frechet_to(reference: Tensor) -> Distance:
    """`frechet` against one reference [m, d], whose half is worked out once.

    With C_x = A'A and C_y = B'B the last term's trace is the sum of singular values of A B', which needs no root of a
    nearly singular product.

    Raises:
        ValueError: fewer than two rows on a side.
    """
    middle, half = _half(reference.double(), torch.ones(len(reference), dtype=torch.float64))
    spread = half.square().sum()

    def distance(x: Tensor, groups: Tensor) -> Counted:
        x = x.double()

        def counted(counts: Tensor) -> float:
            mean, mine = _half(x, counts[groups])
            cross = torch.linalg.svdvals(mine @ half.T).sum()
            return float(((mean - middle).square().sum() + mine.square().sum() + spread - 2 * cross).clamp_min(0))

        return counted

    return distance


def _half(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and a factor A [min(n, d), d] of the covariance A'A."""
    n = float(weights.sum())
    if n < 2:
        raise ValueError(f"expected at least two images for a covariance, got {n:.0f}")
    mean = weights @ x / n
    half = (x - mean) * (weights / (n - 1)).sqrt()[:, None]
    return mean, (torch.linalg.qr(half, mode="r").R if len(half) > half.shape[1] else half)


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401): [n, d], [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor, sigma: float = 10.0) -> Tensor:
    """CMMD's kernel exp(-|x - y|^2 / (2 sigma^2)) (Jayasumana et al. 2024, arXiv 2401.09603)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squares.clamp_min(0) / (2 * sigma**2))


def mmd_to(reference: Tensor, kernel: Kernel, *, biased: bool) -> Distance:
    """Squared maximum mean discrepancy (Gretton et al. 2012, eq. 3 and 5) against one reference [m, d].

    Biased: all pairs, an image with itself too: never negative, 0 for identical sets. Unbiased: without those, right on
    average at any n, and sometimes negative. The two sets may differ in size.

    Raises:
        ValueError: fewer than two rows on a side where the figure is unbiased.
    """
    y = reference.double()
    own = _inside(y, torch.zeros(len(y), dtype=torch.long), kernel, biased)(torch.ones(1, dtype=torch.float64))

    def distance(x: Tensor, groups: Tensor) -> Counted:
        x = x.double()
        within = _inside(x, groups, kernel, biased)
        size = torch.bincount(groups).double()
        across = torch.cat([kernel(part, y).mean(1) for part in x.split(ROWS)])
        across = torch.zeros_like(size).index_add_(0, groups, across)
        return lambda counts: within(counts) + own - 2 * float(counts @ across / (counts @ size))

    return distance


def _inside(x: Tensor, groups: Tensor, kernel: Kernel, biased: bool) -> Counted:
    """Mean kernel value over the pairs of a set, kept as sums over pairs of groups."""
    member = torch.nn.functional.one_hot(groups).double()
    sums = torch.zeros(member.shape[1], member.shape[1], dtype=torch.float64)
    selves = torch.zeros(member.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(x)).split(ROWS):
        k = kernel(x[rows], x)
        sums += member[rows].T @ (k @ member)
        selves += member[rows].T @ k[torch.arange(len(rows)), rows]
    size = member.sum(0)

    def counted(counts: Tensor) -> float:
        n, total = counts @ size, counts @ sums @ counts
        if biased:
            return float(total / n**2)
        if n < 2:
            raise ValueError(f"expected at least two images for an unbiased figure, got {n:.0f}")
        return float((total - counts @ selves) / (n * (n - 1)))

    return counted


def kid(x: Tensor, y: Tensor, *, subset: int = 1000, subsets: int = 100, seed: int = 0) -> float:
    """Kernel inception distance: unbiased squared MMD under `polynomial` (Binkowski et al. 2018, arXiv 1801.01401).

    With at least `subset` images on both sides, the mean over `subsets` seeded draws of `subset` images a side without
    repetition, as the reference does; with fewer, all images at once.
    """
    if min(len(x), len(y)) <= subset:
        return plain(mmd_to(y, polynomial, biased=False), x)
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(subsets):
        a, b = (f[torch.randperm(len(f), generator=draw)[:subset]] for f in (x, y))
        parts.append(plain(mmd_to(b, polynomial, biased=False), a))
    return sum(parts) / len(parts)


def cmmd(x: Tensor, y: Tensor, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD: `scale` times the biased squared MMD of L2-normalised CLIP vectors (Jayasumana et al. 2024, arXiv
    2401.09603).
    """
    return scale * plain(mmd_to(unit(y), partial(gaussian, sigma=sigma), biased=True), unit(x))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float64."""
    return torch.nn.functional.normalize(x.double(), dim=-1)


def _gaps(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Distances of some rows of x to all rows of y, exactly 0 for equal ones."""
    for part in x.double().split(ROWS):
        yield torch.cdist(part, y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row [n, d] to its k-th nearest other row.

    Raises:
        ValueError: k rows or fewer.
    """
    if len(x) <= k:
        raise ValueError(f"expected more than {k} images for {k} nearest neighbours, got {len(x)}")
    return torch.cat([gap.kthvalue(k + 1, 1).values for gap in _gaps(x, x)])


def inside(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """Which rows of x [n, d] lie in the manifold of y [m, d]: within the k-th neighbour's distance of any row
    (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1). Their share is the precision of x against the reference y, or
    the recall of y when x is the reference.
    """
    reach = radii(y, k)
    return torch.cat([(gap <= reach).any(1) for gap in _gaps(x, y)])


def density(x: Tensor, y: Tensor, k: int = 5) -> float:
    """How many spheres of the reference y a row of x lies in, over k (Naeem et al. 2020, arXiv 2002.09797);
    about 1 for one distribution, and it may exceed 1.
    """
    reach = radii(y, k)
    return sum(float((gap <= reach).sum()) for gap in _gaps(x, y)) / (k * len(x))


def coverage(x: Tensor, y: Tensor, k: int = 5) -> float:
    """Share of the reference's spheres that hold a row of x (Naeem et al. 2020, arXiv 2002.09797)."""
    nearest = torch.stack([gap.min(0).values for gap in _gaps(x, y)]).min(0).values
    return float((nearest <= radii(y, k)).double().mean())


def lpips(
    x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[Tensor] | None = None, eps: float = 1e-8
) -> Tensor:
    """Learned perceptual distance of pairs of images (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

    Per layer: channels normalised at every place, squared differences weighted by channel, meaned over places; then
    summed over layers.

    Args:
        x: one tensor [n, C, H, W] per layer.
        y: the same of the other images.
        weights: [C] per layer; None weighs every channel 1.
        eps: keeps an empty place from being divided by 0; torchmetrics' and torch-fidelity's own value and place.

    Returns:
        [n].
    """
    total = torch.zeros(len(x[0]), dtype=x[0].dtype, device=x[0].device)
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        a, b = (f / (eps + f.square().sum(1, keepdim=True)).sqrt() for f in (a, b))
        gap = (a - b).square()
        if weights is not None:
            gap = gap * weights[k][None, :, None, None].to(gap)
        total = total + gap.sum(1).mean((1, 2))
    return total


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each image vector [n, d] with the text vector in the same row [n, d]: CLIP's score on the scale 0 to 1
    (Hessel et al. 2021, arXiv 2104.08718, without their weight of 2.5 and without their cut at 0).
    """
    return (unit(images) * unit(texts)).sum(1)


def h_o(erased: float, kept: float, general: float) -> float:
    """Harmonic mean of forgetting, keeping and generalising (MACE, Lu et al. 2024, arXiv 2403.06135).

    3 / (1 / (1 - erased) + 1 / kept + 1 / (1 - general)), of accuracies from 0 to 1 for the erased concept, for the
    others and for the erased concept's synonyms. Where one term is 0 the mean is its limit, 0.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    parts = (1 - erased, kept, 1 - general)
    if not all(0 <= p <= 1 for p in parts):
        raise ValueError(f"expected shares from 0 to 1, got {erased}, {kept} and {general}")
    return 0.0 if min(parts) == 0 else 3 / sum(1 / p for p in parts)
