"""The declaration of an adaptation session: every setting with its range and meaning, in one place.

`config/adapt.yaml` holds the same keys; node and command line read it through `config.load`.
"""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from world_gymnast_ros.adaptation.advantage import METHODS
from world_gymnast_ros.adaptation.rollout_filter import TrustConfig
from world_gymnast_ros.config import flag, number, ros_name, text
from world_gymnast_ros.errors import BadBudget, BadConfig
from world_gymnast_ros.robot.camera_extrinsics import StoredCamera, read_camera


@dataclass(frozen=True)
class AdaptConfig:
    """One session of test-time training. Raises BadBudget or BadConfig for a value out of range."""

    budget_s: float = number(300.0, -math.inf, math.inf, "wall time of a session, promotion test included")
    max_updates: int = number(12, -math.inf, math.inf, "so many updates; a session that time ends before half of "
                              "them is starved and promotes nothing")
    groups_per_update: int = number(2, 1, 1024, "groups per update, each with its own jittered start; at least one for "
                                    "each instruction")
    copies: int = number(16, 2, 4096, "rollouts per group")
    horizon_steps: int = number(16, 1, 2000, "actions per imagined rollout, rounded up to whole chunks")
    temperature: float = number(1.2, 0.05, 10.0, "sampling temperature in training")
    advantage: str = text("grpo", "grpo or leave_one_out", METHODS)
    speed_bonus: float = number(0.2, 0.0, 10.0, "extra reward of an immediate success, falling to 0 at the horizon")
    progress_weight: float = number(0.5, 0.0, 10.0, "weight of the judge's progress beside its score, in the reward")
    judge_every_chunks: int = number(0, 0, 2000, "judge so often, to end a rollout when all copies are done; 0: once")
    jitter_shift: float = number(0.012, 0.0, 0.2, "largest shift of the start image, as a part of its width")
    jitter_colour: float = number(0.03, 0.0, 0.5, "largest change of the start image's colours, as a part")
    evaluate_every: int = number(2, 1, 1e6, "updates between held-out evaluations")
    select_groups: int = number(8, 1, 1024, "held-out groups, of each instruction, that choose the checkpoint")
    promotion_groups: int = number(24, 4, 1024, "other held-out groups, of each instruction, that decide on promotion")
    held_out_copies: int = number(2, 1, 1024, "rollouts per held-out group")
    max_batch: int = number(64, 1, 4096, "held-out rollouts imagined at once; lower it when memory runs out")
    held_out_temperature: float = number(0.05, 0.05, 10.0, "held-out sampling; low, because the arm acts greedily")
    margin: float = number(0.05, 0.0, 1.0, "gain in imagined success that must be exceeded")
    allowed_loss: float = number(0.1, 0.0, 1.0, "of several instructions each must be shown to lose less than this")
    confidence: float = number(0.95, 0.5001, 0.9999, "one-sided confidence that it is exceeded")
    patience: int = number(3, 1, 1e6, "stop after so many held-out evaluations without improvement")
    solved_rate: float = number(0.95, 0.0, 1.0, "stop where held-out success and its mean score reach this, after "
                                "practice on all starts")
    max_idle_updates: int = number(4, 1, 1e6, "stop after so many updates in a row with nothing to learn")
    max_rejection_rate: float = number(0.5, 0.0, 1.0, "stop when an update has more of its rollouts rejected")
    reroll: bool = flag(True, "imagine predicted successes again under other noise; drop what is not reproduced")
    moved_m: float = number(0.03, 0.0, 10.0, "commanded path above which the image must change")
    static_levels: float = number(16.0, 0.0, 255.0, "grey levels by which a pixel counts as changed")
    static_fraction: float = number(0.001, 0.0, 1.0, "part of the pixels that must then change")
    sharpness_floor: float = number(0.2, 0.0, 1.0, "smallest edge energy, as a part of the start image's")
    colour_shift_levels: float = number(40.0, 0.0, 255.0, "largest shift of the mean colour")
    action_error_m: float = number(0.0, 0.0, 1.0, "largest mean distance, m a step, between what was played and what "
                                   "the world model reads out of a predicted success (Cosmos 3 can); 0: not asked")


    def __post_init__(self) -> None:
        if not (self.budget_s > 0 and math.isfinite(self.budget_s)):
            raise BadBudget(f"budget_s must be positive and finite, got {self.budget_s}; give at least some seconds")
        if self.max_updates < 1:
            raise BadBudget(f"max_updates must be at least 1, got {self.max_updates}")
        check_ranges(self)

    @property
    def jitter(self) -> tuple[float, float]:
        return self.jitter_shift, self.jitter_colour

    @property
    def trust(self) -> TrustConfig:
        return TrustConfig(self.moved_m, self.static_levels, self.static_fraction, self.sharpness_floor,
                           self.colour_shift_levels, self.reroll, self.action_error_m)


@dataclass(frozen=True)
class AdaptNodeConfig(AdaptConfig):
    """`adapt_node` and `world-gymnast adapt`: the session, its learner, and where things lie."""

    policy: str = text("", "folder of the policy; empty: the small one that ships with the package")
    world_model: str = text("", "folder of the world model, or http://HOST:PORT of a server of one; empty: the small "
                            "one that ships with the package")
    world_model_timeout_s: float = number(120.0, 0.1, 36000.0, "longest wait for one answer of a world model's server: "
                                          "a chunk of all rollouts at once")
    judges: str = text("tiny/reflector_alone", "judges that must agree, with commas: folders, "
                       "shipped names, hub names, http://HOST:PORT/v1#MODEL")
    arm_params: str = text("", "arm.yaml whose step limits and workspace hold in imagination; empty: the shipped one")
    device: str = text("auto", "where the models compute: auto (the GPU where there is one), cpu, cuda, cuda:1")
    dtype: str = text("auto", "of the models: auto (each one's own choice), float32, bfloat16, float16",
                      ("auto", "float32", "bfloat16", "float16"))
    four_bit: bool = flag(False, "hold a published policy's language model in 4 bits (NF4, bitsandbytes): for 24 GB")
    check_memory: bool = flag(True, "refuse a session whose memory plan is larger than what is free on the device")
    directory: str = text("runs", "folder for adapters/ and sessions/")
    episodes: str = text("", "folder of recorded real episodes; sessions are held to those that succeeded; empty: none")
    episodes_camera: str = text("", "which camera of `episodes`, where there are several; empty: the only one")
    starts: str = text("", "folder of recordings in this scene: training begins at their frames too, near their end "
                       "first; empty: none")
    replay: str = text("", "frames of earlier scenes that training returns to: policy (what ships with it), a file, or "
                       "a folder of sessions; empty: none")
    varied: int = number(0, 0, 1000, "varied starts: other light, a camera turned a little, objects beside the task's; "
                         "the judges look at each")
    cut_outs: str = text("", "folder of objects for them, PNG with transparency; empty: those that ship")
    keep_free: str = text("", "image whose bright parts they keep free of objects; empty: bare table is used")
    editor: str = text("", "paints bare table into further starts: folder or hub name of an inpainting pipeline of "
                       "diffusers, http://HOST:PORT/v1#MODEL of a server that edits images; empty: none")
    edits: int = number(4, 0, 32, "starts that it makes; the judges look at each")
    edit_prompts: str = text("a wooden table with a mug and a spoon on it; a table with a checked tablecloth; "
                             "a dark table with fruit on it; a white table with a sheet of paper and a pen on it",
                             "what it is asked for by turns, with semicolons")
    editor_px: int = number(512, 64, 2048, "width and height of the square that it paints on")
    editor_timeout_s: float = number(120.0, 0.1, 3600.0, "longest wait for one edit")
    cloning_coefficient: float = number(0.3, 0.0, 100.0, "weight of cloning those beside the imagined reward")
    horizon_from_task: bool = flag(True, "horizon_steps of a known task family is that family's own")
    lora_rank: int = number(0, 0, 1024, "rank of the LoRA adapter; 0: by the policy, 16 for the small one, 32 for a "
                            "published one")
    lora_alpha: float = number(0.0, 0.0, 1e4, "scale of the LoRA adapter; 0: twice the rank")
    learning_rate: float = number(0.0, 0.0, 1.0, "AdamW; 0: by the policy, 1e-3 for the small one, 2e-5 for a "
                                  "published one")
    epochs: int = number(2, 1, 100, "passes over each batch")
    minibatch_chunks: int = number(80, 1, 1e6, "chunks per optimiser step")
    micro_chunks: int = number(0, 0, 1e6, "chunks per backward pass, lower when memory runs out; 0: by the policy, 80 "
                               "for the small one, 8 for a published one")
    clip_low: float = number(0.2, 0.0, 1.0, "ratio may fall by so much")
    clip_high: float = number(0.28, 0.0, 10.0, "ratio may rise by so much")
    kl_coefficient: float = number(-1.0, -1.0, 100.0, "weight of the divergence from the base policy; -1: by the "
                                   "policy, 0 for the small one, 0.01 for a published one")
    target_kl: float = number(0.0, 0.0, 10.0, "divergence from the base, nats per action token, that the coefficient "
                              "is set by, in earlier scenes where there are any; 0: the coefficient stays as it is")
    min_release_auc: float = number(0.9, 0.0, 1.0, "refuse tasks that the world model ranks worse; 0: accept any")
    max_false_success: float = number(0.15, 0.0, 1.0, "refuse tasks of which more failures may pass for successes")
    capture_frames: int = number(3, 1, 100, "camera frames taken as starts when a goal arrives and none were kept")
    max_captures: int = number(16, 1, 100, "so many images of ~/capture are kept for the next session")
    capture_timeout_s: float = number(5.0, 0.1, 60.0, "longest wait for them")
    camera_calibration: str = text("", "file of a calibrated camera (robot calibrate), for checks, judges and world "
                                   "model; empty: Bridge's nominal one, or the one that a judge has learned")
    min_hand_seen: float = number(0.25, 0.0, 1.0, "part of the hand that a captured image must show; 0: any")
    max_state_age_s: float = number(0.5, 0.01, 10.0, "joint states older than this are not used")
    image_compressed: bool = flag(False, "subscribe image_raw/compressed in place of image_raw")
    robot_name: str = ros_name("wx250s", "namespace of the driver, for joint_states")
    policy_port: int = number(0, 0, 65535, "serve the policy on this machine's port, so that policy_node acts through "
                              "this one copy (policy_url: http://127.0.0.1:PORT) and switches adapters by hash; 0: no")
    threads: int = number(2, 1, 256, "torch threads; keep some cores for the control loop")
    niceness: int = number(10, 0, 19, "scheduling priority given up, so that control keeps its deadlines")

    def camera(self) -> StoredCamera | None:
        """Return the calibrated camera, or None where no file is named. BadConfig for a file that is none."""
        return read_camera(Path(self.camera_calibration).expanduser()) if self.camera_calibration else None


def check_ranges(config: AdaptConfig) -> None:
    """Check every field against its declared range and choices. Raises BadConfig naming field, value and limit."""
    for spec in dataclasses.fields(config):
        value, meta = getattr(config, spec.name), spec.metadata
        if "low" in meta and not (math.isfinite(value) and meta["low"] <= value <= meta["high"]):
            raise BadConfig(f"{spec.name} is {value}; it must lie in {meta['low']:g}..{meta['high']:g} ({meta['doc']})")
        if meta.get("choices") and value not in meta["choices"]:
            raise BadConfig(f"{spec.name} is {value!r}; choose one of {', '.join(meta['choices'])}")
