"""Estimates with intervals, paired and clustered tests, corrections, divergences and verdicts. Pure NumPy and SciPy.

Everything random takes an integer ``seed`` (PCG64) and gives the same result for the same seed and values.
"""

from symbolic_residue.stats._bootstrap import (
    bootstrap_columns,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio,
    cluster_bootstrap,
)
from symbolic_residue.stats._clustered_share import clustered_wilson, effective_n
from symbolic_residue.stats._corrections import benjamini_hochberg, holm
from symbolic_residue.stats._decide import decide, Direction, Outcome, quantile_criterion
from symbolic_residue.stats._estimate import bound, Estimate, generator, score_bounds, t_interval, wilson
from symbolic_residue.stats._flip_interval import flip_columns
from symbolic_residue.stats._information import entropy, js_divergence, kl_divergence
from symbolic_residue.stats._paired import mcnemar, paired_difference
from symbolic_residue.stats._samples import detectable_effect, two_sample_columns
from symbolic_residue.stats._tests import (
    auc,
    cluster_sign_flip,
    empirical_p,
    max_t,
    paired_permutation,
    power_sign_flip,
    sign_flip_test,
)

__all__ = [
    "Direction",
    "Estimate",
    "Outcome",
    "auc",
    "benjamini_hochberg",
    "bootstrap_columns",
    "bootstrap_mean",
    "bootstrap_median",
    "bootstrap_ratio",
    "bound",
    "cluster_bootstrap",
    "cluster_sign_flip",
    "clustered_wilson",
    "decide",
    "detectable_effect",
    "effective_n",
    "empirical_p",
    "entropy",
    "flip_columns",
    "generator",
    "holm",
    "js_divergence",
    "kl_divergence",
    "max_t",
    "mcnemar",
    "paired_difference",
    "paired_permutation",
    "power_sign_flip",
    "quantile_criterion",
    "score_bounds",
    "sign_flip_test",
    "t_interval",
    "two_sample_columns",
    "wilson",
]
