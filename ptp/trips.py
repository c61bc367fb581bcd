"""A small world that is random but lawful: trips between the places of a city, an order-one Markov chain."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor


@dataclass(frozen=True)
class City:
    """A square of places. The next stop is near (`reach` blocks or so) or popular, both a matter of chance."""

    side: int = 4
    reach: float = 1.5
    seed: int = 1

    @property
    def places(self) -> int:
        """Size of the vocabulary."""
        return self.side**2

    def law(self) -> Tensor:
        """Chance of every next place -> [places, places] float64."""
        popularity = torch.randn(self.places, generator=torch.Generator().manual_seed(self.seed)).double()
        place = torch.arange(self.places)
        street = torch.stack([place // self.side, place % self.side], 1).double()
        return (popularity - torch.cdist(street, street, p=1) / self.reach).softmax(1)

    def trips(self, count: int, length: int) -> Tensor:
        """Random trips -> [count, length] int64. They begin anywhere."""
        cumulative = self.law().cumsum(1)
        stops = [torch.randint(self.places, (count,))]
        for _ in range(length - 1):
            u = torch.rand(count, 1, dtype=torch.float64)
            stops.append((cumulative[stops[-1]] < u).sum(1).clamp(max=self.places - 1))
        return torch.stack(stops, 1)

    def entropy(self) -> float:
        """Bits per stop of a long trip."""
        law = self.law()
        visits = torch.linalg.matrix_power(law, 1 << 20)[0]
        return -float((visits[:, None] * torch.xlogy(law, law)).sum()) / log(2)
