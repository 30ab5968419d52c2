"""Serve the policy over HTTP, as AutoEval's policy servers do: POST /act with picture and instruction, a chunk back.

examples:
  world-gymnast serve                                      the shipped tiny policy at http://127.0.0.1:8000/act
  world-gymnast serve --adapter runs/adapt/adapters/NAME   with an adapter that `adapt` stored
  world-gymnast serve --first-action --port 8001           one action (7,) per request, as OpenVLA's server answers
  curl http://127.0.0.1:8000/health                        what is served, and what the seven numbers mean

On the robot, policy_node asks such a server when `policy_url: "http://HOST:8000"` is set in config/policy.yaml.
There is NO authentication and no encryption: whoever can reach the port can use the policy and keep it busy. It listens
on this machine alone unless --host says otherwise; over a network, prefer a tunnel (ssh -L 8000:127.0.0.1:8000 HOST).
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from world_gymnast_ros.cli import options
from world_gymnast_ros.cli.checks import whole

HELP = "serve the policy over HTTP (POST /act), for AutoEval or a robot elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.policy(parser)
    parser.add_argument("--adapter", type=Path, help="adapter folder (default: the base policy)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine "
                        "alone; anything else is open to the network, WITHOUT authentication)")
    whole(parser, "--port", 0, 65535, default=8000, help="0: any free one (default: %(default)s)")
    parser.add_argument("--first-action", action="store_true", help="answer (7,), not the whole chunk (K, 7)")
    options.device(parser)
    options.dtype(parser)
    whole(parser, "--threads", 0, 256, default=0, help="torch threads (default: torch's own choice)")


def run(args: argparse.Namespace) -> int:
    """Load, warm up, then answer until Ctrl-C."""
    import numpy as np

    from world_gymnast_ros.errors import BadConfig
    from world_gymnast_ros.serving.server import PolicyServer, PolicyService, is_loopback
    from world_gymnast_ros.store import load_adapter
    from world_gymnast_ros.types import Frame

    if not args.host.strip():
        raise BadConfig("--host is empty; give 127.0.0.1 for this machine alone, or an address of it")
    adapter = load_adapter(args.adapter) if args.adapter else None

    import torch

    from world_gymnast_ros.loading.load import load_policy

    if args.threads:
        torch.set_num_threads(args.threads)
    policy = load_policy(args.policy, args.device, args.dtype)
    policy.load_adapter(adapter)
    service = PolicyService(policy, adapter.name if adapter else "base", args.first_action)
    with PolicyServer(service, args.host, args.port) as server:
        policy.act(Frame(np.zeros((480, 640, 3), np.uint8), 0), "reach the red block")  # the first one is slow
        if not is_loopback(args.host):
            print(f"WARNING: listening on {args.host}: open to the network, without authentication or encryption",
                  file=sys.stderr, flush=True)
        size = "one action" if args.first_action else f"{policy.chunk_size} actions"
        print(f"policy '{policy.name}', adapter '{service.adapter}', {size} per request: {server.url}/act", flush=True)
        server.serve_forever()
    return 0
