"""Adapt a policy to the scene before the camera, inside a world model: one bounded, honest session.

    repeat   imagine a group from a jittered start -> judge -> distrust -> advantages -> learner.update
    now and then   measure on held-out seeds and remember the best weights
    at the end     promotion test: base against best on other held-out seeds; promote only what is surely better, and
                   nothing of a session that was starved of time

Policy, world model, judge and learner are arguments; so are time and randomness. Whatever happens, the policy leaves
this function as it came: a promoted adapter is saved, and loading it is the caller's act.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from world_gymnast_ros.adaptation.advantage import Advantages, group_advantages, rollout_rewards
from world_gymnast_ros.adaptation.config import AdaptConfig
from world_gymnast_ros.adaptation.jitter import jitter_start
from world_gymnast_ros.adaptation.log import (
    AdaptReport,
    Outcome,
    Progress,
    SessionLog,
    Stop,
    StopKind,
    Stopwatch,
    Strip,
    UpdateRow,
)
from world_gymnast_ros.adaptation.practice import Practice, by_turns, curricula
from world_gymnast_ros.adaptation.promotion import HeldOut, Promotion, decide_each, hold_out
from world_gymnast_ros.adaptation.rollout import Cancelled, derive_seed, imagine, is_success, never
from world_gymnast_ros.adaptation.rollout_filter import TrustCounts, filter_group
from world_gymnast_ros.adaptation.strips import keep_extremes, strip_pair, strip_varied
from world_gymnast_ros.adaptation.time_plan import RECORDED, STARVED_SHARE, Rate, TimePlan
from world_gymnast_ros.errors import BadInstruction, RemoteModelError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import AdapterRef, Judge, Policy, RolloutGroup, Start, WorldModel

STRIPS_OF_VARIED = 4
"""So many varied starts are shown; edited ones all are."""


Trained = tuple[RolloutGroup, Advantages]
"""A group and what its rollouts were worth."""


class Learner(Protocol):
    """Trains weights inside a policy. Between `begin` and `end` the policy acts with the weights being trained."""

    @property
    def name(self) -> str:
        """What learns and what it is held to, in words, for log and report."""

    def begin(self) -> None:
        """Attach trainable weights; the policy acts exactly as before until the first update."""

    def update(self, batch: Sequence[Trained], temperature: float, seed: int, replay: Sequence[Trained] = ()
               ) -> dict[str, float]:
        """Improve the weights on groups with their advantages; return figures worth logging.

        `replay`: groups of earlier scenes, where the policy shall stay as it was; one without advantages (all rewards
        equal) still says what that was.
        """

    def snapshot(self) -> Mapping[str, Any]:
        """Return a copy of the weights."""

    def restore(self, weights: Mapping[str, Any]) -> None:
        """Put a snapshot back."""

    def save(self, directory: Path) -> None:
        """Write the weights as an adapter into an existing directory."""

    def end(self) -> None:
        """Detach: the policy is again what it was before `begin`. Safe to call twice."""


class _Session:
    """What the steps of one session share. Private: `adapt` is the interface."""

    def __init__(self, policy: Policy, world_model: WorldModel, judge: Judge, starts: Sequence[Start],
                 config: AdaptConfig, seed: int, watch: Stopwatch, log: SessionLog,
                 progress: Callable[[Progress], None], cancelled: Callable[[], bool], withheld: str,
                 practice: Practice) -> None:
        self.policy, self.world_model, self.judge, self.starts = policy, world_model, judge, by_turns(starts)
        self.practice, self.curricula = practice, curricula(practice.along)
        self.instructions = len({s.instruction for s in starts})
        self.groups = max(config.groups_per_update, self.instructions)
        self.config, self.seed, self.watch, self.log = config, seed, watch, log
        self.progress, self.cancelled, self.withheld = progress, cancelled, withheld
        self.counts, self.rollouts, self.frames = TrustCounts(), 0, 0
        self.curve: list[UpdateRow] = []
        self.strips: list[Strip] = []
        self.idle = self.stale = 0
        self.update_s = self.held_out_s = 0.0
        self.best = self.sure = (0.0, 0.0)  # of the best checkpoint: HeldOut.rank; rate and mean score
        self.starved = ""  # how far the session fell short for want of time

    def tell(self, stage: str, update: int, reward: float, success: float, notice: str = "", warns: bool = False
             ) -> None:
        self.progress(Progress(stage, update, self.config.max_updates, reward, success,
                               max(0.0, self.config.budget_s - self.watch.elapsed_s), self.counts.rejected, notice,
                               warns))

    def time_plan(self, update_s: float, spent_s: float | None = None) -> TimePlan:
        """Return what the session takes where an update takes `update_s`, and held-out dreams what they took."""
        c, replay = self.config, int(bool(self.practice.replay))
        rate = Rate(update_s / ((self.groups + replay) * c.copies), self.held_out_s / c.held_out_copies)
        return TimePlan(c, self.instructions, rate, spent_s, len(self.curve), replay)

    def tell_time(self, update_s: float) -> None:
        """Say, after the first update, how many of them the budget allows."""
        plan, row = self.time_plan(update_s, self.watch.elapsed_s), self.curve[-1]
        self.log.write(RECORDED, **asdict(plan.rate), per_minute=plan.rate.per_minute, fitting=plan.fitting,
                       short=plan.short)
        self.tell("training", row.update, row.mean_reward, row.imagined_success, plan.words, plan.short)

    def count(self, counts: TrustCounts, steps: int) -> None:
        self.counts += counts
        self.rollouts += counts.rollouts + counts.rerolled
        self.frames += (counts.rollouts + counts.rerolled) * steps

    def chosen(self, update: int, g: int) -> tuple[Start, str]:
        """Return where group `g` of an update begins, and what that is: "captured", "along" or "varied".

        Instructions take turns. At every other turn of one, its captured starts give way to one along the way while its
        curriculum goes on, else to a varied or edited one where there are any.
        """
        turn = (update - 1) * self.groups + g
        mine = self.starts[turn % self.instructions::self.instructions]
        instruction, turn = mine[0].instruction, turn // self.instructions
        curriculum = self.curricula.get(instruction)
        if curriculum is not None and curriculum.finished:
            curriculum = None
        varied = self.practice.beside(instruction)
        if curriculum is None and not varied:
            return mine[turn % len(mine)], "captured"
        if turn % 2 == 0:
            return mine[turn // 2 % len(mine)], "captured"
        seed = derive_seed(self.seed, 1, update, g, 3)
        return (curriculum.draw(seed), "along") if curriculum else (varied[seed % len(varied)], "varied")

    def group(self, update: int, g: int) -> tuple[RolloutGroup, Advantages, TrustCounts]:
        """Imagine one group, distrust it, and turn what is left into advantages; beyond the last group, one of earlier
        scenes."""
        start, kind = self.chosen(update, g)
        if g >= self.groups:
            replay = self.practice.replay
            start, kind = replay[derive_seed(self.seed, 1, update, g, 3) % len(replay)], "replay"
        group, counts = self.imagined(start, update, g)
        rewards = rollout_rewards(group, self.config.speed_bonus, self.config.progress_weight)
        advantages = group_advantages(rewards, self.config.advantage)
        verdicts = [j for j in group.judgements if j.score is not None]
        if kind == "along":
            self.curricula[start.instruction].note(sum(map(is_success, verdicts)) / len(group.judgements))
        self.count(counts, len(group.chunks) * self.policy.chunk_size)
        self.log.write("group", update=update, start=kind, instruction=start.instruction, rewards=rewards,
                       advantages=advantages.values, degenerate=advantages.degenerate, counts=asdict(counts),
                       details=sorted({j.detail for j in group.judgements if j.score is None and j.detail})[:4],
                       reach={w: c.reach for w, c in self.curricula.items()})
        return group, advantages, counts

    def imagined(self, start: Start, update: int, g: int) -> tuple[RolloutGroup, TrustCounts]:
        """Imagine a group from a start, jittered, and take what cannot be trusted out of it."""
        c = self.config
        start = jitter_start(start, derive_seed(self.seed, 1, update, g, 0), *c.jitter)
        with self.watch.stage("imagine and judge"):
            group = imagine(self.policy, self.world_model, self.judge, start, c.copies, c.horizon_steps, c.temperature,
                            derive_seed(self.seed, 1, update, g, 1), judge_every_chunks=c.judge_every_chunks,
                            cancelled=self.cancelled, sparing=True)
        with self.watch.stage("distrust"):
            return filter_group(self.world_model, self.judge, start, group, c.trust,
                                derive_seed(self.seed, 1, update, g, 2), self.cancelled)

    def held_out(self, label: str, update: int, branch: int, groups: int) -> HeldOut:
        """Measure the policy as it stands on the held-out seeds of `branch` (2 selects, 3 promotes), `groups` of each
        instruction; always from the captured frames."""
        c = self.config
        groups *= self.instructions
        began_s = self.watch.elapsed_s
        with self.watch.stage("held-out evaluation"):
            result = hold_out(self.policy, self.world_model, self.judge, self.starts, groups=groups,
                              copies=c.held_out_copies, horizon_steps=c.horizon_steps,
                              temperature=c.held_out_temperature, jitter=c.jitter,
                              trust=c.trust, seed=derive_seed(self.seed, branch), max_batch=c.max_batch,
                              judge_every_chunks=c.judge_every_chunks, progress_weight=c.progress_weight,
                              cancelled=self.cancelled)
        self.held_out_s = (self.watch.elapsed_s - began_s) / groups
        self.count(result.counts, c.horizon_steps)
        if branch == 2:
            self.log.write("held_out", update=update, rate=result.rate, mean_score=result.mean_score,
                           mean_reward=result.mean_reward, counts=asdict(result.counts))
        self.tell(label, update, result.mean_reward, result.rate)
        return result

    def must_stop(self, last: TrustCounts) -> Stop | None:
        """Return why training must end now, or None. Keeps the time that the promotion test will need."""
        c = self.config
        reserve_s = self.time_plan(self.update_s).reserve_s
        if self.watch.elapsed_s + self.update_s + reserve_s > c.budget_s:
            return Stop(StopKind.TIME,
                        f"time: {c.budget_s:.0f} s budget, {reserve_s:.0f} s kept for the promotion test")
        if last.rejection_rate > c.max_rejection_rate:
            return Stop(StopKind.TRUST, f"trust: {last.rejected} of {last.rollouts} rollouts rejected, more than "
                        f"{c.max_rejection_rate:.0%}; the policy is leaving what the world model knows")
        # Two updates can solve the images that they saw; the scene has those that were not practised on too.
        practised = not self.curve or len(self.curve) * self.groups >= len(self.starts)
        if practised and min(self.sure) >= c.solved_rate:
            return Stop(StopKind.SOLVED, f"solved: {self.sure[0]:.0%} held-out success in imagination, of which the "
                        "judges are sure; more training could only learn the dream's mistakes")
        if self.idle >= c.max_idle_updates:
            return Stop(StopKind.NO_SIGNAL, f"no signal: {self.idle} updates in a row had equal rewards or no verdict")
        if self.stale >= c.patience:
            return Stop(StopKind.NO_PROGRESS,
                        f"no progress: {self.stale} held-out evaluations in a row without improvement")
        return None

    def fell_short(self, stop: Stop) -> str:
        """Return '' or how far the session fell short for want of time, and how much of it would do."""
        c, made = self.config, len(self.curve)
        if stop.kind is not StopKind.TIME or made >= STARVED_SHARE * c.max_updates:
            return ""
        needed_s = self.time_plan(self.update_s).needed_s(c.max_updates)
        return (f"{made} of {c.max_updates} updates in its {c.budget_s:.0f} s; all of them would take about "
                f"{needed_s:.0f} s here")

    def train_once(self, learner: Learner, update: int) -> TrustCounts:
        """Do one update: groups, advantages, gradient. Returns the trust counts of its groups."""
        began_s = self.watch.elapsed_s
        groups = [self.group(update, 0)]
        if update == 1:
            per_minute = 60.0 * self.config.copies / max(self.watch.elapsed_s - began_s, 1e-9)
            self.tell("training", 0, groups[0][1].mean_reward, 0.0,
                      f"{per_minute:.0f} rollouts per minute in the first group, imagined and judged")
        groups += [self.group(update, g) for g in range(1, self.groups)]
        replay = [self.group(update, self.groups)[:2]] if self.practice.replay else []
        batch = [(group, advantages) for group, advantages, _ in groups if not advantages.degenerate]
        stats: dict[str, float] = {}
        if batch:
            with self.watch.stage("learn"):
                stats = learner.update(batch, self.config.temperature, derive_seed(self.seed, 1, update, 9999),
                                       replay)
        self.idle = 0 if batch else self.idle + 1
        if self.cancelled():
            raise Cancelled(f"cancelled after update {update}")
        counts = sum((c for _, _, c in groups), TrustCounts())
        reward = sum(a.mean_reward for _, a, _ in groups) / len(groups)
        verdicts = [j for group, _, _ in groups for j in group.judgements if j.score is not None]
        success = sum(map(is_success, verdicts)) / max(len(verdicts), 1)
        self.curve.append(UpdateRow(update, reward, success, counts.rejected, self.watch.elapsed_s, None, stats))
        first, kind = self.chosen(update, 0)
        began = first.captured.rgb
        if kind == "varied":  # what the camera gave shows other objects and another light
            began = resize_rgb(first.frame.rgb, (began.shape[0], began.shape[1]))
        self.strips = keep_extremes(self.strips, groups[0][0], update, began)
        self.log.write("update", update=update, mean_reward=reward, imagined_success=success, idle=not batch, **stats)
        took_s = self.watch.elapsed_s - began_s
        self.update_s = max(self.update_s, took_s)
        self.tell("training", update, reward, success)
        if update == 1:
            self.tell_time(took_s)
        return counts


def adapt(policy: Policy, world_model: WorldModel, judge: Judge, learner: Learner, starts: Sequence[Start],
          config: AdaptConfig, seed: int, now_s: Callable[[], float],
          progress: Callable[[Progress], None] = lambda _: None, cancelled: Callable[[], bool] = never, *,
          log_path: Path | None = None, save: Callable[[Learner, dict[str, Any]], AdapterRef] | None = None,
          withheld: str = "", practice: Practice | None = None) -> AdaptReport:
    """Run one session and report. The policy is as before when this returns or raises.

    `save(learner, scores)` stores the promoted adapter (see store.AdapterStore); None is a dry run: everything but
    promotion. `practice`: where training begins beside the captured starts; held-out rollouts never do. `withheld`:
    why nothing may be promoted whatever the dream says, or ''; a session that was starved of time promotes nothing
    either. Every decision goes to `log_path` as JSON lines. Errors of any part propagate after the policy is restored;
    a cancel is an ordinary outcome.
    """
    if not starts:
        raise BadInstruction("nothing to adapt to: give at least one captured frame with an instruction")
    watch = Stopwatch(now_s)
    log = SessionLog(log_path, lambda: watch.elapsed_s)
    names = {"policy": policy.name, "world_model": world_model.name, "judge": judge.name,
             "learner": learner.name}
    log.write("session", config=asdict(config), seed=seed, names=names, instructions=[s.instruction for s in starts],
              notes=(practice or Practice()).notes)
    session = _Session(policy, world_model, judge, starts, config, seed, watch, log, progress, cancelled, withheld,
                       practice or Practice())
    try:
        learner.begin()
        outcome, message, stop, promotion, ref = _train_and_decide(session, learner, save)
    except Cancelled as cancel:
        outcome, message, promotion, ref = Outcome.CANCELLED, f"{cancel}; present policy kept", None, None
        stop = Stop(StopKind.CANCELLED, "cancelled")
    except RemoteModelError as error:  # judges' errors never come here: this is the world model's
        outcome, message, promotion, ref = Outcome.KEPT, f"no verdict, {error}; present policy kept", None, None
        stop = Stop(StopKind.NO_VERDICT, f"no verdict, {error}")
        log.write("stop", reason=stop.text)
    except BaseException as error:
        log.write("crash", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        learner.end()
    log.write("end", outcome=outcome, message=message, seconds=watch.seconds, counts=asdict(session.counts))
    session.tell(outcome, len(session.curve), session.curve[-1].mean_reward if session.curve else 0.0,
                 promotion.after.value if promotion else 0.0)
    began = (*(strip_varied(v, "varied start") for v in session.practice.varied[:STRIPS_OF_VARIED]),
             *(strip_varied(e, "edited start") for e in session.practice.edited))
    return AdaptReport(outcome, message, ref, promotion, tuple(session.curve), (*session.strips, *began),
                       session.counts, dict(watch.seconds, total=watch.elapsed_s), session.rollouts, session.frames,
                       tuple(starts), names, stop, session.starved, session.practice.notes)


_Result = tuple[Outcome, str, Stop, Promotion | None, AdapterRef | None]


def _train_and_decide(s: _Session, learner: Learner, save: Callable[[Learner, dict[str, Any]], AdapterRef] | None
                      ) -> _Result:
    c = s.config
    base = learner.snapshot()
    before = s.held_out("measuring the base", 0, 2, c.select_groups)
    if not before.known.any():  # nothing would ever be learned; say why now and not after the budget
        why = next((j.detail for group, _ in before.shown for j in group.judgements if j.detail),
                   "the judge gave no reason")
        mute = Stop(StopKind.NO_VERDICT, f"no verdict: {why}")
        s.log.write("stop", reason=mute.text)
        return Outcome.KEPT, f"the judges gave no verdict on any rollout ({why}): present policy kept", mute, None, None
    s.update_s = s.held_out_s * s.groups  # a first, low estimate
    best, best_update, s.best, s.sure = base, 0, before.rank, (before.rate, before.mean_score)
    counts = TrustCounts()
    stop: Stop | None = None
    for update in range(1, c.max_updates + 1):
        if stop := s.must_stop(counts):
            break
        counts = s.train_once(learner, update)
        if update % c.evaluate_every == 0 or update == c.max_updates:
            result = s.held_out("held-out evaluation", update, 2, c.select_groups)
            s.curve[-1] = UpdateRow(**{**vars(s.curve[-1]), "held_out": result.rate})
            s.stale += all(curriculum.finished for curriculum in s.curricula.values())
            if result.rank > s.best:  # of equals the earliest: it has moved least away from the base
                best, best_update, s.best = learner.snapshot(), update, result.rank
                s.sure = result.rate, result.mean_score
                s.stale = 0
    stop = stop or Stop(StopKind.DONE, f"done: all {c.max_updates} updates")
    s.starved = s.fell_short(stop)
    s.log.write("stop", reason=stop.text, starved=s.starved)
    s.log.write("select", update=best_update)
    if best_update == 0:
        why = "no checkpoint beat the base on the selection seeds" if s.curve else "no update was made"
        short = not s.curve and stop.kind is StopKind.TIME
        remedy = f"; measuring the base alone took {s.watch.elapsed_s:.0f} s, give a larger budget_s" if short else ""
        return Outcome.KEPT, f"{why} ({stop.text}): present policy kept{remedy}", stop, None, None
    starved = f"the session was starved: {s.starved}" if s.starved else ""
    promotion = _promotion_test(s, learner, base, best, s.withheld or starved)
    if not promotion.promote:
        none = promotion.decided and promotion.after.value == 0
        advice = (f"; nothing succeeded in imagination yet, the mean reward went from {before.mean_reward:.2f} to "
                  f"{s.best[1]:.2f}: where it rises give more updates (max_updates), else let training begin near "
                  "success, at frames of recordings (starts)") if none else ""
        return Outcome.KEPT, promotion.reason + advice, stop, promotion, None
    if save is None:
        return Outcome.WOULD_PROMOTE, f"dry run: {promotion.reason}, but not stored", stop, promotion, None
    scores = {"imagined_before": asdict(promotion.before), "imagined_after": asdict(promotion.after),
              "difference": asdict(promotion.difference), "margin": c.margin, "update": best_update, "seed": s.seed,
              "instructions": [start.instruction for start in s.starts], "world_model": s.world_model.name,
              "judge": s.judge.name}
    ref = save(learner, scores)
    s.log.write("promote", adapter=ref.name, sha256=ref.sha256, path=str(ref.path))
    return Outcome.PROMOTED, promotion.reason, stop, promotion, ref


def _promotion_test(s: _Session, learner: Learner, base: Mapping[str, Any], best: Mapping[str, Any], withheld: str
                    ) -> Promotion:
    """Measure base and best on the same promotion seeds, which chose nothing before; leaves the best weights in place.

    `withheld`: why nothing may be promoted whatever comes of it, or ''.
    """
    c = s.config
    learner.restore(base)
    before = s.held_out("promotion test: base", len(s.curve), 3, c.promotion_groups)
    learner.restore(best)
    after = s.held_out("promotion test: adapter", len(s.curve), 3, c.promotion_groups)
    known = before.known & after.known
    seed = derive_seed(s.seed, 4)
    instructions = [s.starts[d % len(s.starts)].instruction for d in range(len(known))]
    promotion = decide_each(before.success, after.success, known, instructions, c.margin, c.allowed_loss, c.confidence,
                       seed).withhold(withheld)
    s.log.write("promotion_test", instructions=instructions, success_before=before.success,
                success_after=after.success, known=known, seed=seed, withheld=withheld,
                promote=promotion.promote, lower_bound=promotion.lower_bound, reason=promotion.reason)
    for (group_before, captured), (group_after, _) in zip(before.shown, after.shown, strict=True):
        s.strips = s.strips + strip_pair(group_before, group_after, captured)
    return promotion
