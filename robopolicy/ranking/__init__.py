"""Which checkpoint goes on the robot: scores, statistics, VSDR, the report. No simulator.

As a library: every public name below, e.g. `from robopolicy.ranking import mmrv, clopper_pearson`. Names load on first use.
Functions that compare a prediction with what was obtained take (real, predicted), in this order, larger = better.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "metrics": (
        "Portfolio",
        "best_at_k",
        "kendall",
        "mean_at_k",
        "mmrv",
        "pairwise_accuracy",
        "pearson",
        "portfolio_at_k",
        "regret_at_k",
        "safety_violation_rate_at_k",
        "sharpe_ratio_at_k",
        "spearman",
        "std_at_k",
        "top_k_hit",
        "worst_at_k",
    ),
    "intervals": ("anytime_binomial", "clopper_pearson", "tango", "wilson"),
    "betting": ("betting_ci", "betting_sequence"),
    "sequential": ("ETest2x2", "ETestResult", "e_test_2x2"),
    "ppi": ("PpiResult", "ppi_mean"),
    "statistics": (
        "RankSummary",
        "cluster_bootstrap",
        "holm",
        "mcnemar",
        "paired_comparison",
        "prob_top_k",
        "rank_summary",
        "ranks",
        "stream",
    ),
    "separation": ("fisher_matrix", "mcnemar_matrix", "tie_groups", "wald_matrix"),
    "variance": ("SeedVariance", "VarianceComponents", "plateaued", "seed_variance", "variance_components"),
    "seeds": ("training_seeds",),
    "finalists": ("compare_finalists",),
    "winners": ("Finalist", "Shrunk", "confirm", "shrink"),
    "power": ("detectable_difference", "episodes_to_separate", "power_to_separate"),
    "allocation": ("Halving", "Round", "halving_plan", "hopeless", "sequential_halving", "survivors"),
    "cokriging": ("CoKriging", "fit_cokriging"),
    "advice": ("Advice", "next_real", "posterior_draws"),
    "combine": ("vsdr",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = (*_NAMES, "detectors")

__all__ = list(_MODULE_OF) + list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
