"""Sums of floats that do not depend on the order of what is added, nor on how it is parted: whole numbers, added."""

import numpy as np

from rtrain.metrics.state import Floats

DIGITS, BITS = 4, 22
"""A number is cut into a whole part and three digits behind it, of base 2**22: what is below 2**-66 is left out."""


def exactly(values: Floats) -> Floats:
    """float64 [4]: the sum of float64 [n], digit by digit; the digits of two sums are added to have both.

    Exact for up to 2**31 values of less than 2**22 on average: each digit is a whole number below 2**53.
    """
    digits = np.empty(DIGITS)
    for place in range(DIGITS):
        values, whole = np.modf(values)
        digits[place] = whole.sum()
        values = values * 2.0**BITS
    return digits


def as_number(digits: Floats) -> float:
    """The float64 that is nearest to a sum of `exactly`."""
    total = 0
    for digit in digits.tolist():
        total = (total << BITS) + int(digit)
    return total / (1 << BITS * (DIGITS - 1))
