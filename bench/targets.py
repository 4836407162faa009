"""A figure that was asked for, beside the one that was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One row of a table of them."""

    what: str
    quantity: str
    asked: float
    at_least: bool
    measured: float | None
    unit: str = "×"
    remark: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.asked if self.at_least else self.measured <= self.asked

    def row(self) -> dict[str, str]:
        sign = "≥" if self.at_least else "≤"
        value = "not measured" if self.measured is None else f"{self.measured:.4g} {self.unit}"
        return {
            "what": self.what,
            "quantity": self.quantity,
            "asked": f"{sign} {self.asked:g} {self.unit}",
            "measured": value + (f" ({self.remark})" if self.remark else ""),
            "met": {True: "yes", False: "NO", None: "–"}[self.met],
        }
