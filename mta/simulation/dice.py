"""A small generator of chances: the same seed gives the same chances on every machine.

Two multiplicative generators of 31 bits, taken together (L'Ecuyer 1988, "Efficient and portable combined random number
generators", CACM 31(6)): its period is 2e18, and no product in it needs more than a machine word. Not for secrets.
"""

from __future__ import annotations

import math
from typing import Final

_MODULUS_A: Final = 2_147_483_563
_MODULUS_B: Final = 2_147_483_399
_FACTOR_A: Final = 40_014
_FACTOR_B: Final = 40_692
_STATES: Final = _MODULUS_A - 1  # that a word can have: 1 to so many
_FRACTION: Final = 1.0 / _MODULUS_A
_SPREAD: Final = 0x9E3779B97F4A7C15  # seeds that follow each other begin far apart
NEVER: Final = 2**60  # further away than any count of messages


class Dice:
    """All draws come from the one seed, in order."""

    __slots__ = ("_a", "_b")

    def __init__(self, seed: int) -> None:
        spread = (seed + 1) * _SPREAD % (1 << 64)
        self._a = spread % (_MODULUS_A - 1) + 1
        self._b = (spread >> 31) % (_MODULUS_B - 1) + 1
        for _ in range(8):
            self.word()

    def word(self) -> int:
        """One of 2**31 - 86 numbers from 1 on, all as likely."""
        self._a = self._a * _FACTOR_A % _MODULUS_A
        self._b = self._b * _FACTOR_B % _MODULUS_B
        word = self._a - self._b
        return word if word > 0 else word + _STATES

    def uniform(self) -> float:
        """In (0, 1)."""
        return self.word() * _FRACTION

    def below(self, bound: int) -> int:
        """0 .. bound - 1; ``bound`` is small beside 2**31."""
        return self.word() % bound

    def shuffle(self, names: list[str]) -> None:
        """In place (Fisher and Yates)."""
        for at in range(len(names) - 1, 0, -1):
            other = self.below(at + 1)
            names[at], names[other] = names[other], names[at]

    def until_next(self, odds: float) -> int:
        """How many tries go well before the next one that does not, where each fails with these odds (0 to 1)."""
        if odds <= 0.0:
            return NEVER
        if odds >= 1.0:
            return 0
        return int(math.log(1.0 - self.uniform()) / math.log(1.0 - odds))


class Chances:
    """Which of a row of messages fare badly, each with the same odds, at the cost of those that do."""

    __slots__ = ("_dice", "_left", "odds")

    def __init__(self, odds: float, dice: Dice) -> None:
        self.odds = odds
        self._dice = dice
        self._left = dice.until_next(odds)

    def hits(self, messages: int) -> int:
        """How many of the next ``messages``."""
        if messages <= self._left:
            self._left -= messages
            return 0
        found = 0
        left = messages
        while left > self._left:
            left -= self._left + 1
            found += 1
            self._left = self._dice.until_next(self.odds)
        self._left -= left
        return found


_TABLE_LEN: Final = 256


class Latency:
    """How long something takes: log-normally spread around its mean, as answers of servers are."""

    __slots__ = ("_dice", "_table", "mean_s")

    def __init__(self, mean_s: float, spread: float, dice: Dice) -> None:
        """``spread``: the standard deviation of the logarithm; 0: always the mean."""
        self.mean_s = mean_s
        self._dice = dice
        quantiles = [_normal_quantile((at + 0.5) / _TABLE_LEN) for at in range(_TABLE_LEN)]
        raw = [math.exp(spread * one) for one in quantiles]
        scale = mean_s * _TABLE_LEN / sum(raw)
        self._table = [scale * one for one in raw] if spread > 0.0 else []

    def draw(self, times: int = 1) -> float:
        """Of so many one after the other, together, in seconds."""
        if not self._table:
            return self.mean_s * times
        one = self._table[self._dice.word() & (_TABLE_LEN - 1)]
        if times == 1:
            return one
        # The mean of several strays less, by the square root of their number.
        return times * (self.mean_s + (one - self.mean_s) / math.sqrt(times))


def _normal_quantile(odds: float) -> float:
    """Of the standard normal distribution, by bisection of its integral: 256 of them are asked for, once."""
    low, high = -6.0, 6.0
    for _ in range(50):
        middle = (low + high) / 2
        if 0.5 * (1.0 + math.erf(middle / math.sqrt(2.0))) < odds:
            low = middle
        else:
            high = middle
    return (low + high) / 2
