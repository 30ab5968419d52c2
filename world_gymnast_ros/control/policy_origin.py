"""May this policy move this arm? A policy that has seen simulated images only is no policy for a real arm.

It is not a matter of how good it is: nothing of what was measured of it holds where it was never shown an image.
"""
from __future__ import annotations

from collections.abc import Sequence

from world_gymnast_ros.types import SIMULATION


def origin_refusal(policy: str, trained_on: str, sources: Sequence[str], simulators: Sequence[str]) -> str:
    """Return why a policy must not move an arm, or "".

    `trained_on` as its card says. `sources`: names of the nodes that publish the arm's joint states; the arm counts as
    simulated only if there are some, and all of them are among `simulators`.
    """
    if trained_on != SIMULATION or (sources and set(sources) <= set(simulators)):
        return ""
    heard = f"joint states come from {', '.join(sorted(set(sources)))}" if sources else "there are no joint states"
    return (f"policy '{policy}' has seen simulated images only, and this arm is not the twin's ({heard}): set "
            "checkpoint or policy_url in config/policy.yaml to a policy for this robot, or run with dry_run:=true; "
            "allow_simulation_policy:=true lets it move the arm nevertheless")
