"""Pure functions: everything that can be wrong in the last digits, and the moves of elements."""

from flowkit.functional.logistic import logit_mix_logistic_cdf, logit_mix_logistic_cdf_inverse
from flowkit.functional.mix_gaussian import probit_mix_gaussian_cdf, probit_mix_gaussian_cdf_inverse
from flowkit.functional.precision import log_term_dtype
from flowkit.functional.rearrange import (
    pair_channels,
    pair_checkerboard,
    pair_columns,
    squeeze,
    unpair_channels,
    unpair_checkerboard,
    unpair_columns,
    unsqueeze,
)
from flowkit.functional.reduce import sum_rightmost
from flowkit.functional.spline import rational_quadratic_spline, rational_quadratic_spline_inverse

__all__ = [
    "log_term_dtype",
    "sum_rightmost",
    "logit_mix_logistic_cdf",
    "logit_mix_logistic_cdf_inverse",
    "probit_mix_gaussian_cdf",
    "probit_mix_gaussian_cdf_inverse",
    "pair_channels",
    "pair_checkerboard",
    "pair_columns",
    "rational_quadratic_spline",
    "rational_quadratic_spline_inverse",
    "squeeze",
    "unpair_channels",
    "unpair_checkerboard",
    "unpair_columns",
    "unsqueeze",
]
