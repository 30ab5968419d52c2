"""The stages of a round that need the arm: exploration, and the validation of what is to follow.

What follows is what the promotion test promoted, or else the behaviour-cloned (BC) policy. It is tried as it will be
deployed, greedily, and dropped where it did not do well enough, or (`limit_pairs`) where pairs of trials with the
present adapter, in random order, do not speak for it.
"""
from __future__ import annotations

from typing import Any

from world_gymnast_ros import seeds
from world_gymnast_ros.loading.load import load_policy
from world_gymnast_ros.statistics import chance_better
from world_gymnast_ros.updates.learn_policy import imagined_successes
from world_gymnast_ros.updates.real_episodes import collect, deal, successes
from world_gymnast_ros.updates.run import Round, State
from world_gymnast_ros.updates.validation import validate

NOT_WORSE, BETTER = 0.2, 0.8
"""How likely a candidate must be better than the present adapter, by what either did on the arm, to follow. What the
promotion test promoted must not be clearly worse; nor must a BC policy where more of its rollouts succeed, or while
there is no adapter yet, or one that fails more often than not: cloning lifts what has not learned this scene. Any other
BC policy must be better."""
ROLLOUTS = 48
"""About how many tell whether adaptation begins at the present adapter or at the BC policy, over captured frames."""


def compare(record: tuple[int, int], present: State, promoted: bool, preferred: bool = False) -> dict[str, Any]:
    """Say whether a candidate follows `present`, by its own successes and trials on the arm (`record`).

    Both are compared as they acted greedily; a base that only explored so far, by what it did then. `promoted`: by the
    promotion test; else it is a BC policy, `preferred` where more of its rollouts succeed.
    """
    rival = present.greedy if present.greedy[1] else present.record
    chance = round(chance_better(*rival, *record), 6)
    asked = NOT_WORSE if promoted or preferred or present.weak or not present.adapter else BETTER
    name = "what the promotion test promoted" if promoted else "the BC policy"
    return {"promoted": promoted, "chance": chance, "used": chance >= asked, "message": (
        f"{name} succeeded in {record[0]} of {record[1]}, the present adapter in {rival[0]} of {rival[1]}: better with "
        f"a chance of {chance:.2f}, asked for are {asked:g}")}


def explore(here: Round) -> dict[str, Any]:
    """Explore with the present adapter. The loop keeps a third of the round's episodes for validation."""
    c = here.run.config
    count = c.episodes - (c.episodes // 3 if here.method == "loop" else 0)
    wins = play(here, 0, count, c.temperature)
    here.say(f"{wins} of {count} explored real episodes succeeded")
    return {"episodes": count, "successes": wins, "first_seed": seeds.real(c.seed, here.number)[0]}


def play(here: Round, part: int, count: int, temperature: float) -> int:
    """Run real episodes with the adapter of the state, greedy at temperature 0: `part` 0 of the round explores, 1
    validates. Deal them out to learning and checking; return successes."""
    run = here.run
    name = f"{here.name}-validation" if part else here.name
    episodes = collect(run.environment, load_policy(run.adapt.policy), here.adapter(),
                       seeds.real(run.config.seed, here.number, part), count, run.instruction, temperature,
                       here.where / "episodes" / name, here.progress())
    deal(episodes, here.where, name)
    return successes(episodes)


def choose_begin(here: Round, bc_policy: str) -> dict[str, Any]:
    """Say whether adaptation begins at the present adapter or at a BC policy `bc_policy` ('' for none): there where the
    adapter fails more often than not; else where more rollouts of the BC policy succeed.

    Both are imagined from the same captured frames, under the same noise. A BC policy has never seen the world model,
    the present adapter may have learned in it, so one that flatters does not flatter the BC policy.
    """
    state = here.state
    if not bc_policy or state.weak:
        message = "the present adapter fails more often than not" if bc_policy else "no success to imitate"
        return {"adapter": bc_policy or state.adapter, "preferred": False, "message": message}
    parts, starts = here.parts(), here.run.captured(here.number)
    starts = starts * -(-ROLLOUTS // len(starts))
    wins = []
    for adapter in (state.adapter, bc_policy):
        parts.policy.load_adapter(here.at(adapter=adapter).adapter())
        wins.append(sum(imagined_successes(here, parts, starts, 16, lambda i: here.seed(6, i // 16))))
    preferred = wins[1] > wins[0]
    message = f"{wins[1]} of its {len(starts)} rollouts succeed, of the present adapter's {wins[0]}"
    here.say(f"BC policy: {message}; adaptation begins at the {'BC policy' if preferred else 'present adapter'}")
    return {"adapter": bc_policy if preferred else state.adapter, "preferred": preferred, "message": message,
            "rollouts": len(starts), "present": wins[0], "bc_policy": wins[1]}


def validation(here: Round, promoted: str, bc_policy: str, preferred: bool = False) -> dict[str, Any]:
    """Try on the arm, greedily, what the promotion test promoted, or else the BC policy that nothing in imagination
    was better than; where there is neither, the present adapter.

    So the recordings hold how such a policy fails, which is not how an exploring one does. Returns which adapter
    follows and its records on the arm.
    """
    state, count, candidate = here.state, here.run.config.episodes // 3, promoted or bc_policy
    if candidate and here.run.config.limit_pairs:
        return _in_pairs(here, candidate, bool(promoted), preferred)
    wins = play(here.at(adapter=candidate or state.adapter), 1, count, 0.0)
    found: dict[str, Any] = {"episodes": count, "successes": wins, "candidate": candidate}
    if not candidate:
        return found | _follows(state.adapter, _sum(state.record, (wins, count)), _sum(state.greedy, (wins, count)))
    found |= compare((wins, count), state, bool(promoted), preferred)
    here.say(found["message"])
    return found | (_follows(candidate, (wins, count), (wins, count)) if found["used"] else
                    _follows(state.adapter, state.record, state.greedy))


def _in_pairs(here: Round, candidate: str, promoted: bool, preferred: bool) -> dict[str, Any]:
    """Try the candidate and the present adapter in pairs, in random order, until the sequential test decides.

    What it leaves unclear is decided by the records of these pairs. Same keys as `validation` returns.
    """
    run, c = here.run, here.run.config
    tried = validate(run.environment, load_policy(run.adapt.policy), here.adapter(),
                     here.at(adapter=candidate).adapter(), run.instruction, seeds.real(c.seed, here.number, 1),
                     c.limit_pairs, c.confidence, here.seed(8), here.folder / "validation")
    deal(tried.episodes, here.where, f"{here.name}-validation")
    mine, theirs = tried.record("adapter"), tried.record("base")
    present = here.at(record=_sum(here.state.record, theirs), greedy=_sum(here.state.greedy, theirs)).state
    found: dict[str, Any] = {"episodes": len(tried.episodes), "successes": mine[0], "candidate": candidate,
                             "decision": tried.verdict.decision, "verdict": tried.verdict.as_json()}
    found |= compare(mine, present, promoted, preferred)
    if tried.verdict.decision in ("better", "worse"):
        found |= {"used": tried.verdict.decision == "better", "message": tried.verdict.words}
    here.say(found["message"])
    return found | (_follows(candidate, mine, mine) if found["used"] else
                    _follows(present.adapter, present.record, present.greedy))


def _follows(adapter: str, record: tuple[int, int], greedy: tuple[int, int]) -> dict[str, Any]:
    return {"adapter": adapter, "record": record, "greedy": greedy}


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]
