"""Narrative expression (NarrLV) as a metric that adds up over items and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from miga_bench.metrics.narrlv.scorer import (
    Answers,
    Collapse,
    Variant,
    check_collapse,
    check_variant,
    collapse_to,
    score_video,
)
from miga_bench.metrics.narrlv.suite import FACTORS, Story

_STATES = ("factor", "atoms", "fid", "cov", "coh")


class NarrativeExpression(Metric):
    r"""Whether videos tell their stories: NarrLV's fidelity, coverage and coherence.

    .. math::
        R_{fid} = \frac{fid + q}{2}, \quad R_{cov} = \frac{cov + q}{2}, \quad
        R_{coh} = \frac{coh + q + \rho}{3}

    averaged over the videos that have the score (arXiv 2507.11245; terms, gates, variants and what is done
    without q: `miga_bench.metrics.narrlv.scorer`).

    As input to ``update`` the metric accepts one item, a judge's answers to it and optionally its quality:

    - ``item``: prompt and questions, of a suite.
    - ``answers``: by category, one list of answer texts per question.
    - ``quality``: Q-Align's score of the first frame, 1 to 5, or None.

    As output of ``compute`` it returns a dict of scalar tensors in [0, 1], NaN where no video has the score:

    - ``fid``, ``cov``, ``coh``: means over the videos.
    - ``collapsed``: one number: each factor and number of atoms is collapsed, then averaged, so that
      each weighs the same whatever the number of its videos.

    Args:
        variant: ``code`` as released, ``paper`` as written.
        collapse: How three numbers become one.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        UserError: Variant or collapse is unknown, or answers are not those of the item.

    Example:
        >>> from miga_bench.metrics.narrative import NarrativeExpression
        >>> from miga_bench.metrics.narrlv import Story
        >>> item = Story(
        ...     part="demo_target_action_tna_2", factor="target_action", tna=2, group="1", index=0,
        ...     prompt="A dog sits. Then it runs.", segments=("A dog sits.", "Then it runs."),
        ...     questions={
        ...         "Main Target Category": ("Is there a dog?",),
        ...         "Main Target Action Evolution_0": ("Does it sit?", "Does it run?"),
        ...         "Main Target Action Evolution_1": ("Does it sit, then run?",),
        ...     },
        ... )
        >>> metric = NarrativeExpression()
        >>> metric.update(item, {
        ...     "Main Target Category": [["yes"] * 5],
        ...     "Main Target Action Evolution_0": [["yes"] * 5, ["yes", "no", "no", "no", "no"]],
        ...     "Main Target Action Evolution_1": [["yes"] * 5],
        ... })
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'fid': 1.0, 'cov': 0.6, 'coh': 0.25, 'collapsed': 0.62}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    factor: list[Tensor]
    atoms: list[Tensor]
    fid: list[Tensor]
    cov: list[Tensor]
    coh: list[Tensor]

    def __init__(
        self, variant: Variant = "code", collapse: Collapse = "mean", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_variant(variant)
        check_collapse(collapse)
        self.variant: Variant = variant
        self.collapse: Collapse = collapse
        # One value per video, NaN for an absent score. Flat and of the default precision, as what a
        # process without any video sends to the others.
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, item: Story, answers: Answers, quality: float | None = None) -> None:
        """Score one video; see the class."""
        score = score_video(item, answers, quality=quality, variant=self.variant)
        values = (FACTORS.index(score.factor), score.tna, score.fid, score.cov, score.coh)
        for name, value in zip(_STATES, values, strict=True):
            value = math.nan if value is None else float(value)
            getattr(self, name).append(torch.tensor([value], device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Average; see the class."""
        if len(self.fid) == 0:  # a list, or a tensor once processes have come together
            return dict.fromkeys(("fid", "cov", "coh", "collapsed"), torch.tensor(math.nan))
        # In one order, so that sums do not depend on which process saw what.
        rows = torch.stack([dim_zero_cat(getattr(self, name)) for name in _STATES], 1)
        rows = torch.tensor(sorted(rows.tolist(), key=str), device=rows.device)
        fid, cov, coh = rows[:, 2:].nanmean(0)
        cells = rows[:, :2].unique(dim=0)
        means = [rows[(rows[:, :2] == cell).all(1), 2:].nanmean(0).tolist() for cell in cells]
        numbers = [
            self._collapsed(three, int(cell[1])) for three, cell in zip(means, cells, strict=True)
        ]
        collapsed = torch.tensor(numbers, device=rows.device)
        return {"fid": fid, "cov": cov, "coh": coh, "collapsed": collapsed.nanmean()}

    def _collapsed(self, three: Sequence[float], tna: int) -> float:
        fid, cov, coh = (None if math.isnan(value) else value for value in three)
        number = collapse_to(fid, cov, coh, self.collapse, tna)
        return math.nan if number is None else number

    def plot(self, val: Mapping[str, Tensor] | None = None, ax: Any = None) -> Any:
        """Plot the four numbers.

        Args:
            val: What `compute` returned, or None to call it.
            ax: matplotlib axes to draw into.

        Returns:
            Figure and axes.

        Example:
            >>> fig, ax = NarrativeExpression().plot({"fid": torch.tensor(0.5)})
        """
        return self._plot(dict(val) if val is not None else None, ax)
