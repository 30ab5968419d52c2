"""Whether a new version may follow the present one: rules, each with what was asked and what was found."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    """One rule of a decision: what it is about, the value that was found, the limit, and whether it holds. `text` says
    all of that in a sentence for a person."""

    name: str
    value: float
    limit: float
    holds: bool
    text: str


@dataclass
class Rules:
    """Collects the rules of a decision."""

    rules: list[Rule] = field(default_factory=list)

    def check(self, name: str, value: float, limit: float, holds: bool, text: str) -> bool:
        """Add a rule; return whether it holds."""
        self.rules.append(Rule(name, float(value), float(limit), bool(holds), text))
        return bool(holds)

    def decide(self, promote: bool, better: bool = False) -> Decision:
        """Return the decision."""
        return Decision(bool(promote), tuple(self.rules), bool(better))


@dataclass(frozen=True)
class Decision:
    """`promote`, and the rules behind it. `better`: on what is new, whatever it costs elsewhere."""

    promote: bool
    rules: tuple[Rule, ...] = ()
    better: bool = False

    def rule(self, name: str) -> Rule | None:
        """Return the rule of that name; None where it was not asked."""
        return next((rule for rule in self.rules if rule.name == name), None)

    @property
    def lines(self) -> list[str]:
        """One sentence per rule, for a person."""
        return [f"{'holds' if rule.holds else 'FAILS'}: {rule.text}" for rule in self.rules]
