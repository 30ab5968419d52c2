"""Serve a model over HTTP: the policy (POST /act, as AutoEval's servers do), or a world model for `adapt` elsewhere.

examples:
  world-gymnast serve                                      the shipped tiny policy at http://127.0.0.1:8000/act
  world-gymnast serve --adapter runs/adapt/adapters/NAME   with an adapter that `adapt` stored
  world-gymnast serve --adapters runs/adapters             clients switch adapters by hash, as policy_node does
  world-gymnast serve --first-action --port 8001           one action (7,) per request, as OpenVLA's server answers
  curl http://127.0.0.1:8000/health                        what is served, and what the seven numbers mean
  world-gymnast serve --world-model tiny/world_model --port 8002       a world model instead; then, elsewhere,
                                                           adapt --world-model http://127.0.0.1:8002

On the robot, policy_node asks a policy's server when `policy_url: "http://HOST:8000"` is set in config/policy.yaml;
adapt_node asks a world model's when `world_model: "http://HOST:8002"` is set in config/adapt.yaml.
There is NO authentication and no encryption: whoever can reach the port can use the model and keep it busy. It listens
on this machine alone unless --host says otherwise; over a network, prefer a tunnel (ssh -L 8000:127.0.0.1:8000 HOST).
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import real, whole

if TYPE_CHECKING:
    from world_gymnast_ros.serving.http_server import Service

HELP = "serve the policy (POST /act) or a world model over HTTP, for AutoEval, a robot or a session elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    options.policy(what)
    options.world_model(what)
    parser.add_argument("--adapter", type=Path, help="adapter folder (default: the base policy)")
    parser.add_argument("--adapters", type=Path, metavar="DIR", help="folder of stored adapters: clients may switch to "
                        "any of them, named by hash (policy_node does so when one is offered)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine "
                        "alone; anything else is open to the network, WITHOUT authentication)")
    whole(parser, "--port", 0, 65535, default=8000, help="0: any free one (default: %(default)s)")
    parser.add_argument("--first-action", action="store_true", help="answer (7,), not the whole chunk (K, 7)")
    parser.add_argument("--arm-params", default="", help="world model: arm.yaml whose step limits and workspace hold "
                        "in imagination (default: the shipped one)")
    options.judges(parser)  # a geometric one knows the camera, which a world model may draw for
    real(parser, "--expires-s", 1.0, 86400.0, default=900.0, help="world model: rollouts that nobody asks for so long "
         "are forgotten (default: %(default)s)")
    options.device(parser)
    options.dtype(parser)
    whole(parser, "--threads", 0, 256, default=0, help="torch threads (default: torch's own choice)")


def run(args: argparse.Namespace) -> int:
    """Load, warm up, then answer until Ctrl-C."""
    from world_gymnast_ros.errors import BadConfig
    from world_gymnast_ros.serving.http_server import ModelServer, is_loopback

    if not args.host.strip():
        raise BadConfig("--host is empty; give 127.0.0.1 for this machine alone, or an address of it")
    policy_only = {"--adapter": args.adapter, "--adapters": args.adapters, "--first-action": args.first_action}
    wrong = [name for name, value in policy_only.items() if value]
    if args.world_model and wrong:
        raise BadConfig(f"{wrong[0]} is a policy's; leave it out with --world-model {args.world_model}")
    service, title = _world(args) if args.world_model else _policy(args)
    with ModelServer(service, args.host, args.port) as server:
        if not is_loopback(args.host):
            print(f"WARNING: listening on {args.host}: open to the network, without authentication or encryption",
                  file=sys.stderr, flush=True)
        print(f"{title}: {server.url}{'' if args.world_model else '/act'}", flush=True)
        server.serve_forever()
    return 0


def _policy(args: argparse.Namespace) -> tuple[Service, str]:
    """Return the policy's service, warmed up, and what to say of it."""
    import numpy as np

    from world_gymnast_ros.errors import BadConfig
    from world_gymnast_ros.serving.server import PolicyService
    from world_gymnast_ros.store import load_adapter
    from world_gymnast_ros.types import Frame

    adapter = load_adapter(args.adapter) if args.adapter else None
    if args.adapters and not args.adapters.is_dir():
        raise BadConfig(f"--adapters {args.adapters} does not exist; name the folder that holds them, such as "
                        "runs/adapters")

    import torch

    from world_gymnast_ros.loading.load import load_policy
    from world_gymnast_ros.models.policies.shared import SharedPolicy, in_store

    if args.threads:
        torch.set_num_threads(args.threads)
    policy: Any = load_policy(args.policy, args.device, args.dtype)
    if args.adapters:
        policy = SharedPolicy(policy, in_store(args.adapters), adapter)
    else:
        policy.load_adapter(adapter)
    service = PolicyService(policy, adapter.name if adapter else "base", args.first_action)
    policy.act(Frame(np.zeros((480, 640, 3), np.uint8), 0), "reach the red block")  # the first one is slow
    size = "one action" if args.first_action else f"{policy.chunk_size} actions"
    return service, f"policy '{policy.name}', adapter '{service.adapter}', {size} per request"


def _world(args: argparse.Namespace) -> tuple[Service, str]:
    """Return the world model's service, and what to say of it."""
    import torch

    from world_gymnast_ros.config import robot_limits
    from world_gymnast_ros.errors import BadConfig
    from world_gymnast_ros.loading.load import WORLD_MODEL, checkpoint_dir, load_world_model
    from world_gymnast_ros.loading.release import model_hashes, release_text
    from world_gymnast_ros.models.world_models.action_dit_world import ActionDiTWorld
    from world_gymnast_ros.serving.exchange import is_address
    from world_gymnast_ros.serving.world_server import WorldService

    if is_address(args.world_model):
        raise BadConfig(f"--world-model {args.world_model} is a server already; name a folder, a file, or a shipped "
                        "one")
    if args.threads:
        torch.set_num_threads(args.threads)
    limits = robot_limits(args.arm_params)
    world = load_world_model(args.world_model, args.judge, args.device, args.dtype, limits)
    facts = {"sha256": model_hashes(checkpoint_dir(args.world_model, WORLD_MODEL)),
             "release": release_text(args.world_model)}
    keeps = isinstance(world, ActionDiTWorld)  # others are not told where the arm is
    service = WorldService(world, limits.workspace if keeps else None, facts, args.expires_s)
    return service, f"world model '{world.name}', {world.frame_size[0]}x{world.frame_size[1]} px, stride {world.stride}"
