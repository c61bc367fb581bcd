"""How often a draft is right: calibrated confidence of every place, and the run to expect from a number of slots."""

import torch
from torch import Tensor, nn

from ptp.draft import Draft

NEWTON_STEPS = 20
RIDGE = 1.0  # pseudo-observations against a slope: few examples at a place leave it flat


class Confidence(nn.Module):
    """Logistic calibration per draft place, and H: buffers that are measured on held-out text, not trained."""

    slope: Tensor
    intercept: Tensor
    runs: Tensor

    def __init__(self, slots: int, known: int):
        """Until it is measured, every draft token counts as right half of the time."""
        super().__init__()
        self.known = known
        drafts = slots - known
        self.register_buffer("slope", torch.zeros(drafts))
        self.register_buffer("intercept", torch.zeros(drafts))
        self.register_buffer("runs", 1 - 0.5 ** (torch.arange(slots + 1) - known).clamp(min=0).float())

    def forward(self, score: Tensor) -> Tensor:
        """Chance that each token is right, given that all before it are. [.., k] -> [.., k] float32."""
        k = score.shape[-1]
        return torch.sigmoid(self.slope[:k] * score + self.intercept[:k])

    def measure(self, draft: Draft, right: Tensor) -> None:
        """Learn from held-out drafts of full length: `right` [S, slots - known] bool, `draft` in the same shape."""
        run = right.cumprod(-1)
        reached = torch.cat([torch.ones_like(run[:, :1]), run[:, :-1]], 1).bool()
        fits = [logistic(draft.score[reached[:, j], j], right[reached[:, j], j]) for j in range(right.shape[1])]
        self.slope.copy_(torch.stack([fit[0] for fit in fits]))
        self.intercept.copy_(torch.stack([fit[1] for fit in fits]))
        self.runs.zero_()
        self.runs[self.known + 1 :] = run.float().mean(0).cumsum(0)


def logistic(score: Tensor, right: Tensor) -> Tensor:
    """Slope and intercept of the best logistic curve, by Newton's method -> [2] float32. score [S], right [S] bool."""
    x = torch.stack([score.double(), torch.ones_like(score, dtype=torch.float64)], 1)  # [S, 2]
    weights = x.new_zeros(2)
    ridge = torch.tensor([RIDGE, 1e-3], dtype=x.dtype, device=x.device)
    for _ in range(NEWTON_STEPS):
        chance = torch.sigmoid(x @ weights)
        gradient = x.T @ (right.double() - chance) - ridge * weights
        curvature = (x.T * (chance * (1 - chance))) @ x + ridge.diag()
        weights = weights + torch.linalg.solve(curvature, gradient)
    return weights.float()
