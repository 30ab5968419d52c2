"""Held-out imagination and the decision it leads to: promote an adapter, or keep the base and say why."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.adaptation.advantage import rollout_rewards
from world_gymnast_ros.adaptation.jitter import jitter_start
from world_gymnast_ros.adaptation.rollout import derive_seed, imagine, is_success, never
from world_gymnast_ros.adaptation.rollout_filter import TrustConfig, TrustCounts, filter_group
from world_gymnast_ros.decision import Decision, Rule, Rules
from world_gymnast_ros.statistics import Interval, newcombe_paired, paired_bootstrap, wilson
from world_gymnast_ros.types import F32, U8, Judge, Policy, RolloutGroup, Start, WorldModel


@dataclass(frozen=True)
class HeldOut:
    """Outcomes of D groups x C copies on seeds that training never sees.

    `success` bool (D, C): predicted and reproduced. `known` bool (D, C): the judge gave a verdict. `scores` float32
    (D, C), NaN where unknown; `rewards` float32 (D, C): as in training, without a bonus for speed. A rollout that the
    trust filter rejected is known and not a success.
    """

    success: NDArray[np.bool_]
    known: NDArray[np.bool_]
    scores: F32
    counts: TrustCounts
    rewards: F32
    shown: tuple[tuple[RolloutGroup, tuple[U8, ...]], ...]
    """The first rollouts of each instruction, and the camera's frame (H, W, 3) that each of them began at."""

    @property
    def rate(self) -> float:
        return float(self.success[self.known].mean()) if self.known.any() else 0.0

    @property
    def mean_score(self) -> float:
        return float(self.scores[self.known].mean()) if self.known.any() else 0.0

    @property
    def mean_reward(self) -> float:
        return float(self.rewards[self.known].mean()) if self.known.any() else 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """What makes one checkpoint better than another: confirmed success, then the mean reward, which tells failures
        apart where nothing succeeds yet."""
        return self.rate, self.mean_reward


VERDICTS, GAIN, EACH, WITHHELD = "verdicts", "gain in imagination", "each instruction", "nothing against it"
"""Rules of the promotion test, in the order in which they are asked."""
UNKNOWN = Interval(0.0, -1.0, 1.0, 0.95, 0)
MIN_KNOWN = 0.5
"""Share of pairs that need both verdicts."""


@dataclass(frozen=True)
class EachInstruction:
    """One of several instructions: its rates before and after with 95 % Wilson intervals, and the difference with the
    bounds that were tested."""

    instruction: str
    before: Interval
    after: Interval
    difference: Interval


@dataclass(frozen=True)
class Promotion(Decision):
    """Why an adapter was promoted or not. Rates are imagined success on held-out seeds, each with its 95 % Wilson
    interval; `difference` has the test's own confidence. All of it is about imagination: that the gain is as large on
    the arm follows from none of it. `each`: where there are several instructions, what was found of each.
    """

    before: Interval = UNKNOWN
    after: Interval = UNKNOWN
    difference: Interval = UNKNOWN
    each: tuple[EachInstruction, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether there were verdicts enough to decide on."""
        return self.rule(GAIN) is not None

    @property
    def lower_bound(self) -> float:
        """The gain that the test is sure of."""
        return self.difference.low

    @property
    def evidence(self) -> str:
        """What was found, in words: of the first rule that fails, else of the gain."""
        asked = [rule for rule in self.rules if rule.name != WITHHELD]
        found = [rule for rule in asked if not rule.name.startswith(EACH)]
        return next((rule.text for rule in asked if not rule.holds), found[-1].text)

    @property
    def reason(self) -> str:
        """What was found, and what follows."""
        but = self.rule(WITHHELD)
        return (f"{self.evidence}{f', but {but.text}' if but else ''}: "
                f"{'adapter promoted' if self.promote else 'present policy kept'}")

    def withhold(self, why: str) -> Promotion:
        """Return this decision, but without a promotion where there is a reason `why` against any."""
        if not self.promote or not why:
            return self
        return replace(self, promote=False, rules=(*self.rules, Rule(WITHHELD, 1.0, 0.0, False, why)))


def hold_out(policy: Policy, world_model: WorldModel, judge: Judge, starts: Sequence[Start], *, groups: int,
             copies: int, horizon_steps: int, temperature: float, jitter: tuple[float, float], trust: TrustConfig,
             seed: int, max_batch: int = 64, judge_every_chunks: int = 0, progress_weight: float = 0.0,
             cancelled: Callable[[], bool] = never) -> HeldOut:
    """Evaluate the policy as it stands on `groups` jittered starts; everything random comes from `seed`.

    The same seed gives the same starts, world-model noise and sampling noise to any policy: results are pairs.
    Dreams of one instruction share batches of at most `max_batch` rollouts.
    """
    success, known = np.zeros((groups, copies), np.bool_), np.zeros((groups, copies), np.bool_)
    scores, rewards = (np.full((groups, copies), np.nan, np.float32) for _ in range(2))
    counts = TrustCounts()
    shown: dict[str, tuple[RolloutGroup, tuple[U8, ...]]] = {}
    jittered = [jitter_start(starts[d % len(starts)], derive_seed(seed, d, 0), *jitter) for d in range(groups)]
    for rows in _batches([s.instruction for s in jittered], max(1, max_batch // copies)):
        batch = [jittered[d] for d in rows]
        group = imagine(policy, world_model, judge, batch, copies, horizon_steps, temperature,
                        derive_seed(seed, rows[0], 1), judge_every_chunks=judge_every_chunks, cancelled=cancelled,
                        sparing=True)
        known[rows] = np.array([j.score is not None for j in group.judgements]).reshape(-1, copies)
        scores[rows] = np.array([np.nan if j.score is None else j.score for j in group.judgements]).reshape(-1, copies)
        worth = rollout_rewards(group, progress_weight=progress_weight)
        rewards[rows] = np.array(worth, np.float32).reshape(-1, copies)
        group, more = filter_group(world_model, judge, batch, group, trust, derive_seed(seed, rows[0], 2), cancelled)
        success[rows] = np.array([is_success(j) for j in group.judgements]).reshape(-1, copies)
        counts += more
        shown.setdefault(group.instruction, (group, tuple(s.captured.rgb for s in batch for _ in range(copies))))
    return HeldOut(success, known, scores, counts, rewards, tuple(shown.values()))


def _batches(instructions: Sequence[str], size: int) -> list[list[int]]:
    """Return row numbers grouped by instruction, in pieces of at most `size`."""
    out: list[list[int]] = []
    for instruction in dict.fromkeys(instructions):
        rows = [i for i, other in enumerate(instructions) if other == instruction]
        out += [rows[i: i + size] for i in range(0, len(rows), size)]
    return out


def decide(success_before: NDArray[np.bool_], success_after: NDArray[np.bool_], known: NDArray[np.bool_],
           margin: float, confidence: float, seed: int) -> Promotion:
    """Compare paired outcomes bool (D, C) and promote only if surely better by more than `margin`.

    Two one-sided lower bounds of the difference at `confidence` must both exceed the margin: a bootstrap that
    resamples whole groups (copies of one group are not independent), and the paired Newcombe interval (which stays
    honest where all groups agree and the bootstrap collapses to a point). Pairs without both verdicts are left out;
    fewer than half of the pairs, or fewer than two groups, decide nothing.
    """
    two_sided, rules = 2 * confidence - 1, Rules()
    usable, share = known.any(1), float(known.mean())
    if not rules.check(VERDICTS, share, MIN_KNOWN, share >= MIN_KNOWN and usable.sum() >= 2,
                       f"the judge gave both verdicts for only {int(known.sum())} of {known.size} pairs; need at least "
                       "half"):
        return Promotion(False, tuple(rules.rules))
    a, b = success_before[known], success_after[known]
    gains = success_after.astype(np.float64) - success_before
    per_group = np.array([g[k].mean() for g, k in zip(gains, known, strict=True) if k.any()])
    bootstrap = paired_bootstrap(per_group, two_sided, seed)
    paired = newcombe_paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()),
                             two_sided)
    before, after = wilson(int(a.sum()), a.size), wilson(int(b.sum()), b.size)
    difference = Interval(after.value - before.value, min(bootstrap.low, paired.low), max(bootstrap.high, paired.high),
                          two_sided, int(a.size))
    promote = difference.low > margin
    rules.check(GAIN, difference.low, margin, promote,
                f"imagined success {int(a.sum())}/{a.size} before, {int(b.sum())}/{b.size} after on held-out seeds: "
                f"imagined gain {difference.value:+.2f}, {confidence:.0%} sure of at least {difference.low:+.2f}, "
                f"{'above' if promote else 'not above'} the margin {margin:.2f}")
    return Promotion(promote, tuple(rules.rules), promote, before, after, difference)


def decide_each(success_before: NDArray[np.bool_], success_after: NDArray[np.bool_], known: NDArray[np.bool_],
                instructions: Sequence[str], margin: float, allowed_loss: float, confidence: float, seed: int
                ) -> Promotion:
    """Decide as `decide` does over all groups, and keep the present policy unless no instruction got worse.

    `instructions` (D,): of each group. The same test is made for each instruction by itself, with
    -`allowed_loss` in the place of the margin (non-inferiority): its lower bound must lie above that. All must pass, so
    no correction for their number is needed (an intersection-union test). One without verdicts fails.
    """
    whole = decide(success_before, success_after, known, margin, confidence, seed)
    names = list(dict.fromkeys(instructions))
    if len(names) < 2:
        return whole
    each, rules, of = [], Rules(list(whole.rules)), np.array(instructions)
    for name in names:
        mine = of == name
        one = decide(success_before[mine], success_after[mine], known[mine], -allowed_loss, confidence, seed)
        text = f"no decision on '{name}': {one.evidence}"
        if one.decided:
            each.append(EachInstruction(name, one.before, one.after, one.difference))
            a, b = (round(i.value * i.n) for i in (one.before, one.after))
            text = (f"'{name}' went from {a} to {b} of {one.before.n}: {confidence:.0%} sure of at least "
                    f"{one.lower_bound:+.2f}, {'above' if one.promote else 'not above'} the loss of {allowed_loss:.2f} "
                    "that is allowed")
        rules.check(f"{EACH}: {name}", one.lower_bound, -allowed_loss, one.promote, text)
    promote = all(rule.holds for rule in rules.rules)
    if whole.promote and not promote:
        rules.rules[-len(names):] = [rule if rule.holds else replace(rule, text=(
            f"better over all instructions ({whole.before.value:.2f} to {whole.after.value:.2f} imagined success), but "
            f"not shown for each: {rule.text}; give it more promotion_groups, or adapt to one instruction at a time"))
            for rule in rules.rules[-len(names):]]
    return replace(whole, promote=promote, rules=tuple(rules.rules), each=tuple(each))
