"""Train the tiny models: policy, judge (reflector) or world model; imagine recorded episodes again for the judge.

examples:
  world-gymnast train policy --play data/demo --out runs/policy
  world-gymnast train regression --episodes runs/episodes --out policies/mine    five demonstrations, continuous actions
  world-gymnast train reflector --play data/wide_play --start runs/policy --out runs/reflector
  world-gymnast train reflector-head --trunk Qwen/Qwen3-VL-4B-Instruct --episodes runs/episodes --out judges/mine
  world-gymnast train locator --frames data/frames --play data/wide_play --out runs/locator
  world-gymnast train world-model --play data/wide_play data/train_play --held-out data/held_out --out runs/wm
  world-gymnast train moving-background --episodes data/contact --out runs/wm/moving_background   its contact, learned
  world-gymnast train imagined --play data/wide_play --world-model runs/wm --out data/imagined   then a judge on these:
  world-gymnast train reflector --play data/wide_play --imagined data/imagined --start runs/reflector --out runs/second
  world-gymnast train world-model --play data/wide_play --out runs/wm --resume --minutes 90   go on from a stopped run
  world-gymnast train world-model --episodes runs/demo-*/episodes --out runs/update   learn from what really happened,
      check the new version against the old one, store it in runs/world_models; a stopped run goes on
  world-gymnast train world-model --clips bridge_clips --hold-out 000000009 --out runs/bridge_wm   recorded clips

With other loads on the machine set OMP_WAIT_POLICY=PASSIVE: spinning threads made steps several times slower.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_gymnast_ros.cli import options, trainings
from world_gymnast_ros.cli.checks import present, whole, writable_folder
from world_gymnast_ros.errors import BadConfig

if TYPE_CHECKING:
    from world_gymnast_ros.data.episode import Episode
    from world_gymnast_ros.models.world_models.action_dit import ActionDiT
    from world_gymnast_ros.training.world_model import Trainer

HELP = "train policy, judge or world model"
HELD_OUT_SHARE = 0.25
"""Of real episodes: they decide about a version and are not trained on."""

MODULES = {"policy": "training.policy", "reflector": "training.reflector", "imagined": "updates.imagined",
           "locator": "tabletop.train_locator", "moving-background": "training.moving_background"}
PARSERS = {"policy": trainings.policy, "reflector": trainings.reflector, "imagined": trainings.imagined,
           "locator": trainings.locator, "moving-background": trainings.moving_background}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "; ".join(f"{name}: {text}" for name, text in trainings.TEXTS.items())
    parser.add_argument("what", choices=trainings.TEXTS, help=what)
    # Each training has options of its own; `train policy --help` lists them.
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its options; --help lists them")


def run(args: argparse.Namespace) -> int:
    if args.what == "world-model":
        return _world_model(_world_model_parser().parse_args(args.rest))
    if args.what == "reflector-head":
        from world_gymnast_ros.cli import reflector_head

        return reflector_head.run(args.rest)
    if args.what == "regression":
        from world_gymnast_ros.cli import regression

        return regression.run(args.rest)
    words = PARSERS[args.what]().parse_args(args.rest)
    import importlib

    module = importlib.import_module(f"world_gymnast_ros.{MODULES[args.what]}")
    if args.what == "reflector":  # play data says what lay where, and the twin knows what that means
        from world_gymnast_ros.twin.labels import frame_labels

        return int(module.main(**vars(words), source=frame_labels))
    if args.what == "locator":
        from world_gymnast_ros.twin.observer import nominal_camera

        return int(module.main(words, *nominal_camera()))
    if args.what == "moving-background":
        from world_gymnast_ros.loading.load import WORLD_MODEL, checkpoint_dir

        words.world_model = checkpoint_dir(words.world_model, WORLD_MODEL)
    return int(module.main(**vars(words)))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the options of every training."""
    from world_gymnast_ros.cli import reflector_head, regression

    own = {"world-model": _world_model_parser, "reflector-head": reflector_head.parser, "regression": regression.parser,
           **PARSERS}
    return {name: own[name]() for name in trainings.TEXTS}


def _world_model_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="world-gymnast train world-model", description=trainings.TEXTS["world-model"])
    data = parser.add_argument_group("data (one of --play, --clips and --episodes)")
    present(data, "--play", trainings.PLAY, nargs="+", help="folders of play data (*.npz)")
    present(data, "--held-out", trainings.PLAY, nargs="+", default=[], help="folders of play data to report on only")
    present(data, "--clips", options.EPISODES, help="folder of WorldGym-format clips (<id>.mp4, <id>.npz), or a "
            "LeRobot v3 data set; no state")
    present(data, "--episodes", options.EPISODES, nargs="+", help="folders of marked recordings and of play data: "
            "fine-tune on them, then check")
    options.camera(data)
    data.add_argument("--replay", type=Path, help="with --episodes: folder of earlier data to mix in (default: "
                      "replay/ beside the checkpoint; without any the update is small, and says so)")
    data.add_argument("--old", type=Path, help="with --episodes: folder of earlier data in which nothing may get worse "
                      "(default: held_out/ within --replay; without any it is not checked, and the version says so)")
    data.add_argument("--hold-out", default="", help="clip that is only tested, once, at the end")
    data.add_argument("--validate", default="", help="clip that chooses when to stop (default: the last that is left)")
    whole(data, "--variants", 0, 10000, default=40, help="augmented versions per clip (default: %(default)s)")
    run_ = parser.add_argument_group("run")
    run_.add_argument("--out", type=Path, required=True, help="run folder; itself a loadable checkpoint")
    run_.add_argument("--minutes", type=float, default=60.0, help="budget of wall time (default: %(default)s)")
    run_.add_argument("--steps", type=int, default=0, help="budget in steps instead")
    present(run_, "--init", "name a checkpoint folder, or leave it out",
            help="checkpoint to start from (--episodes: default the shipped one)")
    options.judges(run_)
    run_.add_argument("--store", type=Path, default=Path("runs/world_models"), help="where --episodes puts versions "
                      "(default: %(default)s)")
    run_.add_argument("--resume", action="store_true", help="go on from what --out holds")
    options.seed(run_)
    options.threads(run_)
    options.device(run_)
    how = parser.add_argument_group("how (None: a default that suits the data)")
    whole(how, "--batch", 1, 65536, help="clips per step")
    how.add_argument("--muon-lr", type=float)
    how.add_argument("--rollouts-from", type=float, help="share of the budget after which own rollouts join; 1: never")
    how.add_argument("--moving-weight", type=float, help="extra loss weight of moving pixels")
    how.add_argument("--dropout", type=float, help="dropout of a new network")
    how.add_argument("--report-every-s", type=float, help="seconds between reports and saves")
    how.add_argument("--workspace", type=float, nargs=6, metavar="M",
                     help="box that clips the imagined target: low x y z, high x y z, m")
    how.add_argument("--camera-fit-steps", type=int, default=2500,
                     help="steps that first teach where the camera is; play data only (default: %(default)s)")
    return parser


def _world_model(args: argparse.Namespace) -> int:
    if sum(given is not None for given in (args.play, args.clips, args.episodes)) != 1:
        raise BadConfig("give exactly one of --play (twin data), --clips (recorded clips) and --episodes (what really "
                        "happened)")
    if args.episodes is not None:
        return _update(args)
    from dataclasses import replace

    import torch

    from world_gymnast_ros.loading.load import resolve_device
    from world_gymnast_ros.models.world_models.action_dit import ActionDiTConfig
    from world_gymnast_ros.training.camera import train_camera_fit
    from world_gymnast_ros.training.world_model import TrainConfig, Trainer, new_network

    args.device = resolve_device(args.device)
    torch.set_num_threads(args.threads)
    network_settings: dict[str, Any] = {} if args.workspace is None else {
        "workspace_low_m": tuple(args.workspace[:3]), "workspace_high_m": tuple(args.workspace[3:])}
    # Eight clips: the plain squared error (no extra weight, no floor) is what "better than copying" is measured by.
    settings: dict[str, Any] = {} if args.clips is None else {
        "batch": 8, "moving_weight": 0.0, "keep_best": True, "rollouts_from": 0.3, "report_every_s": 60.0,
        "rollout_count": 48, "weight_decay": 0.05, "full_share": 1.0}
    network_settings |= {} if args.clips is None else {"dropout": 0.1, "still_threshold": 0.0,
                                                       "name": "action-dit-clips"}
    chosen = {k: getattr(args, k) for k in ("batch", "muon_lr", "rollouts_from", "moving_weight", "report_every_s")}
    settings |= {k: v for k, v in chosen.items() if v is not None}
    if args.dropout is not None:
        network_settings["dropout"] = args.dropout
    config = TrainConfig(minutes=args.minutes, steps=args.steps, seed=args.seed, **settings)
    size = ActionDiTConfig().image_size
    training, held_out, test = _clips(args, size) if args.clips else _play(args)
    writable_folder(args.out)
    if args.clips is None:  # the twin's camera is the nominal one of the Bridge set-up
        from world_gymnast_ros.twin.observer import scene_camera
        from world_gymnast_ros.twin.scene import load_scene

        network_settings |= {"camera": scene_camera(load_scene("train_oak")), "plate": True}
    network = new_network(ActionDiTConfig(**network_settings), args.init, args.seed).to(args.device)
    if args.clips is None:  # a checkpoint from before backgrounds learns to use them
        network.config = replace(network.config, plate=True)
    if args.clips is None and args.init is None and not args.resume:
        misfit_px = train_camera_fit(network, training, args.camera_fit_steps, args.seed)
        print(f"camera fit: the arm's silhouette is off by {misfit_px:.2f} px on episodes set aside")
    trainer = Trainer(network, training, held_out, config, args.out)
    if args.resume:
        trainer.resume()
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {len(training)} training episodes, {sum(e.steps for e in training)} steps")
    errors = trainer.run()
    network = trainer.checkpoint_network()
    _card(args, trainer, errors)
    if args.clips:
        print("choosing the gain of drawn changes on the validation clip; not part of --minutes", flush=True)
        _choose_gain(network, held_out, args.out)
    if test:
        print("imagining the held-out clip", flush=True)
        _test(network, test, args.out)
    print(f"wrote {args.out}")
    return 0


def _update(args: argparse.Namespace) -> int:
    """Fine-tune on real episodes, check, store; 0 where the new version is promoted, 1 where the old one is kept."""
    import time

    import torch

    from world_gymnast_ros.data.read import read_episodes
    from world_gymnast_ros.evaluation.replay import Replays, replay_episodes
    from world_gymnast_ros.loading import load as build
    from world_gymnast_ros.store import slug
    from world_gymnast_ros.updates.world_model import Margins, UpdateConfig, split
    from world_gymnast_ros.updates.world_model_run import Data, check_folder, play_folder, replay_folder, update

    torch.set_num_threads(args.threads)
    given = {"steps": args.steps or None, "batch": args.batch, "muon_lr": args.muon_lr}
    config = UpdateConfig(seed=args.seed, **{k: v for k, v in given.items() if v is not None})
    parent = build.checkpoint_dir(args.init, build.WORLD_MODEL)
    size = build.frame_size(parent)[0]
    earlier = replay_folder(args.replay, parent)
    replay, old = play_folder(earlier), play_folder(check_folder(args.old, earlier))
    found = read_episodes(args.episodes, size, args.out / "decoded", camera=args.camera)
    for line in found.left_out:
        print(f"left out: {line}")
    new, held = split(found.marked, HELD_OUT_SHARE, args.seed)
    writable_folder(args.out)
    judges = build.judge_names(args.judge)
    geometric = build.geometric_judge(judges)

    def figures(world_model: Path, some: Sequence[Episode]) -> Replays:
        # Earlier scenes were seen by the earlier camera, which the shipped geometric judge knows.
        learned, finder = [n for n in judges if n != geometric], [build.GEOMETRIC if some is old else geometric]
        names = [*learned, *finder] if geometric else learned
        return replay_episodes(build.load_world_model(world_model, names, args.device),
                               build.load_judges(names, args.device), some, args.seed)

    print(f"{len(new)} episodes to learn from, {len(held)} held out; earlier data: {len(replay)} episodes to mix in, "
          f"{len(old)} to check that nothing got worse", flush=True)
    data = Data(new, held, replay, old, found.hashes)
    result = update(parent, data, config, Margins(), figures, args.out, args.store,
                    slug(args.out.name), time.time_ns(), build.object_finder(parent, judges),
                    build.object_finder(parent, [build.GEOMETRIC] if geometric else judges))
    for name, pair in result.figures.items():
        if not pair:
            continue
        before, after = pair
        print(f"{name} scenes: " + ", ".join(f"{k} {before[k]:.3f} to {after[k]:.3f}" for k in
                                             ("false_success", "agreement", "psnr_db", "structural")))
    print("\n".join(result.decision.lines))
    promoted = result.decision.promote
    print(f"{'promoted' if promoted else 'not promoted, the old version is kept'}: {result.version.path}")
    print(f"images: {args.out / 'replays.png'}")
    return 0 if promoted else 1


def _card(args: argparse.Namespace, trainer: Trainer, errors: dict[str, Any]) -> None:
    from dataclasses import asdict

    from world_gymnast_ros.training.model_card import write_card

    figures: dict[str, Any] = {
        "steps": trainer.step_count, "minutes": round(trainer.elapsed_s / 60, 1),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "training episodes": len(trainer.source.episodes), "held-out episodes reported on": len(trainer.held_out)}
    for family, rows in errors.items():
        figures |= {f"{family}, {h} steps: squared error as a share of copying the start frame; in changed places":
                    f"{row['ratio']:.3f}; {row['changed_ratio']:.3f}" for h, row in rows.items()}
    data = args.play if args.clips is None else [args.clips]
    settings = {**asdict(trainer.config), "threads": args.threads, "data": " ".join(p.name for p in data),
                "continued": args.init is not None}
    write_card(args.out, "World model (ActionDiT), tiny", figures, settings)


def _play(args: argparse.Namespace) -> tuple[list[Episode], list[Episode], list[Episode]]:
    from world_gymnast_ros.data.read import read_array_folders
    from world_gymnast_ros.tabletop.tracks import object_tracks

    training = read_array_folders(args.play, tracks=object_tracks)
    if not training:
        raise BadConfig(f"--play {' '.join(map(str, args.play))} holds no *.npz; make some with `world-gymnast twin "
                        "play`")
    return training, read_array_folders(args.held_out, 6, object_tracks), []


def _clips(args: argparse.Namespace, size: int) -> tuple[list[Episode], list[Episode], list[Episode]]:
    """Return training variants, the clip that decides when to stop, and the clip that is only tested at the end."""
    import numpy as np

    from world_gymnast_ros.data.clip_sampler import variants
    from world_gymnast_ros.data.episode import resized
    from world_gymnast_ros.data.read import read_episodes

    found = read_episodes([args.clips], camera=args.camera)
    for line in found.left_out:
        print(f"left out: {line}")
    clips = {e.name: e for e in found.episodes}
    for name in filter(None, (args.hold_out, args.validate)):
        if name not in clips:
            raise BadConfig(f"there is no clip '{name}' in {args.clips}; choose from {', '.join(clips)}")
    test = [clips.pop(args.hold_out)] if args.hold_out else []
    if len(clips) < 2:
        raise BadConfig(f"{len(clips)} clips are left to train and validate in {args.clips}; at least 2 are needed")
    validation = clips.pop(args.validate if args.validate in clips else sorted(clips)[-1])
    rng = np.random.default_rng(args.seed)
    training = [v for e in clips.values() for v in (resized(e, size), *variants(e, size, args.variants, rng))]
    return training, [resized(validation, size)], [resized(e, size) for e in test]


def _choose_gain(network: ActionDiT, validation: list[Episode], out: Path) -> None:
    """Choose the gain of drawn changes on the validation clip, and write it to the checkpoint.

    A few clips teach the direction of a change better than its size; the best gain keeps what is sure.
    """
    import dataclasses

    from world_gymnast_ros.evaluation.horizon_error import horizon_errors, imagine_segments, segments
    from world_gymnast_ros.files import write_text
    from world_gymnast_ros.models.checkpoint import CONFIG
    from world_gymnast_ros.models.vision import fast_math

    stretches = segments(validation, 5, 1)
    scores: dict[float, float] = {}
    for gain in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        network.config = dataclasses.replace(network.config, change_gain=gain)
        with fast_math(network.age_bias.device):
            errors = horizon_errors(stretches, imagine_segments(network, stretches, seed=3), (1, 5))
        scores[gain] = sum(row["ratio"] for row in errors.values()) / len(errors)
    best = min(scores, key=lambda g: scores[g])
    network.config = dataclasses.replace(network.config, change_gain=best)
    write_text(out / CONFIG, json.dumps(network.config.to_dict(), indent=2, sort_keys=True) + "\n")
    print("validation clip, error as a share of copying by gain: "
          + ", ".join(f"{g:.1f} {s:.3f}" for g, s in scores.items()) + f"; chosen {best:.1f}")


def _test(network: ActionDiT, test: list[Episode], out: Path) -> None:
    """Imagine the held-out clip from each of its frames; print and store the error beside that of copying the frame."""
    from world_gymnast_ros.evaluation.horizon_error import horizon_errors, imagine_segments, segments, write_strips
    from world_gymnast_ros.files import write_text
    from world_gymnast_ros.models.vision import fast_math

    stretches = segments(test, 5, 1)
    with fast_math(network.age_bias.device):
        rollouts = imagine_segments(network, stretches, seed=3)
    errors = horizon_errors(stretches, rollouts, (1, 5))
    write_strips(out / "test.png", stretches[::6], rollouts[::6], columns=6)
    write_text(out / "test.json", json.dumps({"clips": [e.name for e in test], "horizons": errors}, indent=1) + "\n")
    print(f"held-out clip {', '.join(e.name for e in test)}, imagined from {len(stretches)} start frames:")
    for h, r in errors.items():
        print(f"  {h} step: MSE {r['mse']:.6f} against {r['mse_copy']:.6f} for copying (x {r['ratio']:.3f}), PSNR "
              f"{r['psnr_db']:.2f} against {r['psnr_copy_db']:.2f} dB; in changed places x {r['changed_ratio']:.3f}")
    worse = [f"{h} step" for h, r in errors.items() if r["ratio"] >= 1.0]
    if worse:
        print(f"no better than copying the start frame at {', '.join(worse)}: not fit for adaptation, train longer or "
              "on more clips")
