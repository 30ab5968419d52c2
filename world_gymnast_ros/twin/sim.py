"""The twin: physics, servos, gripper motor, camera and truth. Knows nothing of ROS or of policies."""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.errors import BadInstruction
from world_gymnast_ros.robot import actions, kinematics
from world_gymnast_ros.twin import model
from world_gymnast_ros.twin.opengl import gl_error
from world_gymnast_ros.twin.scene import Scene, place_objects
from world_gymnast_ros.twin.tasks import Task, Truth, parse_instruction, progress
from world_gymnast_ros.types import CONTROL_DT_S, F64, U8, ArmState

try:
    import mujoco
except RuntimeError as error:  # MUJOCO_GL is none of its words
    raise gl_error(error) from error

CONTROL_TICK_S = 0.02
"""Servo goals are updated this often; five physics steps."""
FULL_PWM = 885.0
FORCE_AT_FULL_PWM_N = 60.0
"""Finger force at full PWM; 350 of 885 (Bridge's squeeze) gives 24 N shared by both fingers."""
NM_PER_A = 1.783
"""XM430-W350 torque constant, for the driver's effort in mA."""
_HORN_RADIUS_M, _HORN_ARM_M = 0.014, 0.024
_HORN_ANGLES = np.linspace(-1.5, 1.5707, 400)
_HORN_FINGER = _HORN_RADIUS_M * np.sin(_HORN_ANGLES) + np.sqrt(
    _HORN_ARM_M**2 - (_HORN_RADIUS_M * np.cos(_HORN_ANGLES)) ** 2)


class Twin:
    """One arm on one table. `reset` before use; `advance` moves time; everything else reads or sets goals."""

    def __init__(self, scene: Scene, seed: int = 0) -> None:
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._build(scene)
        self.reset(seed, scene.instructions[0])

    def _build(self, scene: Scene) -> None:
        self.close()
        self.scene = scene
        self.model = mujoco.MjModel.from_xml_string(model.build_xml(scene))
        self.data = mujoco.MjData(self.model)
        self._arm = np.array([self.model.joint(n).qposadr[0] for n in kinematics.JOINT_NAMES])
        self._arm_dof = np.array([self.model.joint(n).dofadr[0] for n in kinematics.JOINT_NAMES])
        self._finger = int(self.model.joint("left_finger").qposadr[0])
        self._finger_right = int(self.model.joint("right_finger").qposadr[0])
        self._finger_geoms = [self.model.geom(f"{side}_finger").id for side in ("left", "right")]
        self._site = self.model.site("ee").id
        self.object_names = [o.name for o in scene.objects + scene.distractors]
        self._bodies = [self.model.body(f"object{i}").id for i in range(len(self.object_names))]
        objects = {*self._bodies, 0}
        self._arm_geoms = np.array([g for g in range(self.model.ngeom) if self.model.geom_bodyid[g] not in objects])
        self._gains = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()

    def load(self, scene: Scene, seed: int, instruction: str) -> None:
        """Replace the whole scene, then reset."""
        parse_instruction(instruction)
        self._build(scene)
        self.reset(seed, instruction)

    def close(self) -> None:
        """Free the renderers (they hold GL contexts)."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def reset(self, seed: int, instruction: str, start_state: F64 | None = None) -> None:
        """Place objects and arm for one episode; `start_state` (7,) Bridge state overrides the scene's start."""
        self.task: Task = self._check(instruction)
        rng = np.random.default_rng(seed)
        self.seed = seed
        mujoco.mj_resetData(self.model, self.data)
        for i, (x, y, yaw) in enumerate(place_objects(self.scene, rng)):
            spec = (self.scene.objects + self.scene.distractors)[i]
            quat = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
            if spec.shape == "plate":
                mocap = self.model.body(f"object{i}").mocapid[0]
                self.data.mocap_pos[mocap], self.data.mocap_quat[mocap] = (x, y, 0.0), quat
            else:
                adr = self.model.joint(f"object{i}").qposadr[0]
                self.data.qpos[adr:adr + 7] = (x, y, spec.height_m / 2 + 0.0005, *quat)
        if start_state is None:
            xyz = np.array(self.scene.start_xyz_m) + rng.uniform(-1, 1, 3) * self.scene.start_jitter_m
            start_state = np.array([*xyz, 0, 0, 0, 1.0])
        joints = kinematics.ik(actions.pose_from_state(start_state), np.array([0, 0.02, 0.18, 0, 1.36, 0]))
        self.data.qpos[self._arm] = joints
        self.data.qpos[[self._finger, self._finger_right]] = 0.010 + 0.025 * min(float(start_state[6]), 1.0)
        self.data.qpos[[self._finger, self._finger_right]] = np.clip(
            self.data.qpos[self._finger], model.FINGER_LOWER_M, model.FINGER_UPPER_M)
        self._profile_s = (0.25, 0.10)
        self._segment = (0.0, joints.copy(), np.zeros(6), joints.copy())
        self.data.ctrl[:6] = joints
        self.data.ctrl[6] = 0.0
        mujoco.mj_forward(self.model, self.data)
        self._next_truth_s = 0.0
        self._streak = {self.task.instruction: 0}
        self._success = {self.task.instruction: False}
        self._tick_debt_s = 0.0
        mujoco.mj_step(self.model, self.data, nstep=25)  # objects settle
        self.data.time = 0.0
        self._start_xyz = {n: self._object_xyz(i) for i, n in enumerate(self.object_names)}

    def place(self, name: str, xy_m: F64) -> None:
        """Move a block that rests on the table to (2,) m, base frame, as it is turned."""
        address = self.model.joint(f"object{self.object_names.index(name)}").qposadr[0]
        self.data.qpos[address:address + 2] = xy_m
        mujoco.mj_forward(self.model, self.data)

    def _check(self, instruction: str) -> Task:
        task = parse_instruction(instruction)
        for name in (task.target, task.goal):
            if name and name not in self.object_names:
                raise BadInstruction(
                    f"{instruction!r} names '{name}', but scene '{self.scene.name}' holds only: "
                    f"{', '.join(self.object_names)}")
        return task

    def track(self, instructions: list[str]) -> None:
        """Also measure success of these instructions from now on (for labels)."""
        for text in instructions:
            self._check(text)
            self._streak.setdefault(text, 0)
            self._success.setdefault(text, False)

    # --- what the driver can do -------------------------------------------------------------------------------

    def set_profile_s(self, moving_s: float, accel_s: float) -> None:
        """Set the servo time profile (Interbotix `time` profile), seconds."""
        self._profile_s = (max(moving_s, 0.02), accel_s)

    def set_joint_goals(self, joints: F64) -> None:
        """Set goal positions (6,) rad. The servo profile starts from where the profile is now, with its velocity."""
        position, velocity = self._profile(self.data.time)
        low, high = kinematics.JOINT_LOWER_RAD, kinematics.JOINT_UPPER_RAD
        self._segment = (self.data.time, position, velocity, np.clip(joints, low, high))

    def set_gripper_pwm(self, pwm: float) -> None:
        """Set the gripper motor's PWM, -885..885; positive opens."""
        self.data.ctrl[6] = FORCE_AT_FULL_PWM_N * float(np.clip(pwm, -FULL_PWM, FULL_PWM)) / FULL_PWM

    def set_torque(self, enabled: bool) -> None:
        """Switch all motors on or off; off lets the arm fall, as it does in reality."""
        gain, bias = self._gains
        self.model.actuator_gainprm[:] = gain if enabled else 0.0
        self.model.actuator_biasprm[:] = bias if enabled else 0.0
        if enabled:
            joints = self.data.qpos[self._arm].copy()
            self._segment = (self.data.time, joints, np.zeros(6), joints)

    def _profile(self, time_s: float) -> tuple[F64, F64]:
        """Return profile position and velocity: a cubic from (position, velocity) to (goal, rest) in the moving time.

        A stand-in for the Dynamixel time profile (trapezoid): same duration, same continuity, no jump at a new goal.
        """
        start_s, p0, v0, goal = self._segment
        duration = self._profile_s[0]
        u = min(1.0, (time_s - start_s) / duration)
        if u >= 1.0:
            return goal.copy(), np.zeros(6)
        h00, h10, h01 = 2 * u**3 - 3 * u**2 + 1, u**3 - 2 * u**2 + u, -2 * u**3 + 3 * u**2
        d00, d10, d01 = 6 * u**2 - 6 * u, 3 * u**2 - 4 * u + 1, -6 * u**2 + 6 * u
        position = h00 * p0 + h10 * duration * v0 + h01 * goal
        velocity = (d00 * p0 + d10 * duration * v0 + d01 * goal) / duration
        return position, velocity

    def advance(self, dt_s: float) -> None:
        """Advance physics by `dt_s`, in control ticks of 20 ms; the rest is carried over."""
        self._tick_debt_s += dt_s
        while self._tick_debt_s >= CONTROL_TICK_S - 1e-9:
            self._tick_debt_s -= CONTROL_TICK_S
            position, _ = self._profile(self.data.time + CONTROL_TICK_S)
            self.data.ctrl[:6] = position
            mujoco.mj_step(self.model, self.data, nstep=round(CONTROL_TICK_S / model.PHYSICS_DT_S))
            if self.data.time >= self._next_truth_s - 1e-6:
                self._next_truth_s = self.data.time + CONTROL_DT_S
                self._measure()

    # --- what the driver reports ------------------------------------------------------------------------------

    @property
    def time_s(self) -> float:
        return float(self.data.time)

    @property
    def left_finger_m(self) -> float:
        return float(self.data.qpos[self._finger])

    def joint_positions(self) -> F64:
        """Return (9,): six arm joints, gripper motor (rad), left and right finger (m), in the driver's order."""
        finger = self.left_finger_m
        motor = float(np.interp(finger, _HORN_FINGER, _HORN_ANGLES))
        return np.concatenate([self.data.qpos[self._arm], (motor, finger, -finger)])

    def joint_velocities(self) -> F64:
        """Return (9,); finger velocities are always 0 in the real driver."""
        return np.concatenate([self.data.qvel[self._arm_dof], np.zeros(3)])

    def joint_efforts(self) -> F64:
        """Return (9,) in the driver's mA-like unit; shoulder and elbow share the torque between two motors."""
        current = self.data.actuator_force[:6] / NM_PER_A * 1000.0
        current[[1, 2]] /= 2
        return np.concatenate([current, (self.data.actuator_force[6] / FORCE_AT_FULL_PWM_N * 1000.0, 0.0, 0.0)])

    def arm_state(self, stamp_ns: int) -> ArmState:
        """Return the measured state."""
        joints = self.data.qpos[self._arm].copy()
        return ArmState(kinematics.fk(joints), joints, self.data.qvel[self._arm_dof].copy(), self.joint_efforts()[:6],
                        (self.left_finger_m - 0.010) / 0.025, stamp_ns)

    # --- camera -----------------------------------------------------------------------------------------------

    def render(self, width: int = model.CAMERA_WIDTH, height: int = model.CAMERA_HEIGHT, camera: str = "bridge",
               arm: bool = True) -> U8:
        """Return an image, RGB uint8 (height, width, 3), of the Bridge camera or of the one at the `wrist`; `arm`
        False: as if the arm were not there."""
        if not arm:
            rgba = self.model.geom_rgba.copy()
            self.model.geom_rgba[self._arm_geoms, 3] = 0.0
            try:
                return self.render(width, height, camera)
            finally:
                self.model.geom_rgba[:] = rgba
        key = (width, height)
        if key not in self._renderers:
            self._renderers[key] = self._renderer(width, height)
        renderer = self._renderers[key]
        renderer.update_scene(self.data, camera=camera)
        return np.asarray(renderer.render(), np.uint8)

    def _renderer(self, width: int, height: int) -> mujoco.Renderer:
        """Return a renderer, or raise BadConfig: OpenGL fails in many ways, and most lie in the environment."""
        try:
            return mujoco.Renderer(self.model, height, width)
        except Exception as error:
            raise gl_error(error) from error

    @staticmethod
    def camera_matrix(width: int = model.CAMERA_WIDTH, height: int = model.CAMERA_HEIGHT) -> F64:
        """Return the pinhole matrix (3, 3) in pixels."""
        focal = model.CAMERA_FOCAL_PX * height / model.CAMERA_HEIGHT
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])

    # --- truth ------------------------------------------------------------------------------------------------

    def _object_xyz(self, index: int) -> F64:
        return np.array(self.data.xpos[self._bodies[index]], np.float64)

    def object_xyz(self, name: str) -> F64:
        """Return the centre of an object (3,), m, base frame."""
        return self._object_xyz(self.object_names.index(name))

    def ee_xyz(self) -> F64:
        """Return the end-effector point (3,), m."""
        return np.array(self.data.site_xpos[self._site], np.float64)

    def _touching(self, index: int) -> bool:
        geoms = self.data.contact.geom  # (contacts, 2)
        finger = np.isin(geoms, self._finger_geoms)
        mine = self.model.geom_bodyid[geoms] == self._bodies[index]
        return bool(np.any(finger[:, ::-1] & mine))

    def truth(self, task: Task) -> Truth:
        """Return what physics says about `task` now; its objects must be in the scene."""
        i = self.object_names.index(task.target)
        goal = self.object_xyz(task.goal) if task.goal else None
        speed = float(np.linalg.norm(self.data.cvel[self._bodies[i]][3:]))
        return Truth(self.ee_xyz(), self._object_xyz(i), self._start_xyz[task.target], goal,
                     bool(task.goal) and self._touching(i), speed)

    def _measure(self) -> None:
        for text in self._streak:
            holds, _ = progress(parse_instruction(text), self.truth(parse_instruction(text)))
            self._streak[text] = self._streak[text] + 1 if holds else 0
            self._success[text] = self._success[text] or self._streak[text] >= 2

    def success(self, instruction: str | None = None) -> bool:
        """Whether the task (or another tracked instruction) has been done in this episode; latched."""
        return self._success[instruction or self.task.instruction]

    def progress(self) -> float:
        """Return 0..1 towards the task, not latched."""
        return progress(self.task, self.truth(self.task))[1]
