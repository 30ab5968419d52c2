"""The MuJoCo model of a WidowX 250s on a table, written from its kinematics, limits and masses.

Link offsets and limits: interbotix_xsarm_descriptions, wx250s.urdf.xacro; inertials: public wx250s models. Servo
gains are tuned so that the arm sags a few millimetres under gravity, as the real one does (accuracy 5 to 8 mm). The
gripper is a force on one finger, the other finger is coupled to it; nothing is attached but by contact and friction.
Camera: the Logitech C920 of the Bridge set-up (`robot.camera`).
"""
from __future__ import annotations

import numpy as np

from world_gymnast_ros.robot.actions import rpy_to_matrix
from world_gymnast_ros.robot.camera import (
    BRIDGE_CAMERA_FOCAL,
    BRIDGE_CAMERA_LOOK,
    BRIDGE_CAMERA_XYZ_M,
    level_camera,
)
from world_gymnast_ros.twin.scene import BAR_LENGTH, COLOURS, ObjectSpec, Scene
from world_gymnast_ros.types import F64

PHYSICS_DT_S = 0.004
CAMERA_WIDTH, CAMERA_HEIGHT, CAMERA_FOCAL_PX = 640, 480, 480 * BRIDGE_CAMERA_FOCAL
FOVY_DEG = float(np.degrees(2 * np.arctan(0.5 * CAMERA_HEIGHT / CAMERA_FOCAL_PX)))
FINGER_LOWER_M, FINGER_UPPER_M = 0.010, 0.0375
"""Mechanical range. The URDF says 0.015 to 0.037; Bridge drives to 0.010 (closed); the linkage ends at 0.0375."""
PLATE_HEIGHT_M = 0.006

# joint, link, parent offset (m), axis, range (rad), peak torque (Nm), mass (kg), com (m), inertia quaternion, moments
_LINKS = (
    ("waist", "shoulder_link", (0, 0, 0.072), (0, 0, 1), (-3.141583, 3.141583), 10.0,
     0.480879, (0.00002, 0.00004, 0.00663), (0.0130352, 0.706387, 0.012996, 0.707586),
     (0.000588946, 0.000555655, 0.000378999)),
    ("shoulder", "upper_arm_link", (0, 0, 0.03865), (0, 1, 0), (-1.884956, 1.989675), 20.0,
     0.430811, (0.01716, 0, 0.19132), (0.705539, 0.0470667, -0.0470667, 0.705539),
     (0.00364425, 0.003463, 0.000399348)),
    ("elbow", "upper_forearm_link", (0.04975, 0, 0.25), (0, 1, 0), (-2.146755, 1.605703), 15.0,
     0.234589, (0.10796, 0.00012, 0), (0.000980829, 0.707106, -0.000980829, 0.707106),
     (0.000888, 0.000887807, 0.0000397035)),
    ("forearm_roll", "lower_forearm_link", (0.175, 0, 0), (1, 0, 0), (-3.141583, 3.141583), 5.0,
     0.220991, (0.03744, 0.00522, 0), (-0.0732511, 0.703302, 0.0732511, 0.703302),
     (0.0001834, 0.000172527, 0.0000588633)),
    ("wrist_angle", "wrist_link", (0.075, 0, 0), (0, 1, 0), (-1.745329, 2.146755), 5.0,
     0.084957, (0.04236, -0.00001, 0.01058), (0.608721, 0.363497, -0.359175, 0.606895),
     (0.0000329057, 0.00003082, 0.0000268343)),
    ("wrist_rotate", "gripper_link", (0.065, 0, 0), (1, 0, 0), (-3.141583, 3.141583), 3.0,
     0.110084, (0.03253, 0, 0.00910), (0.546081, 0.419626, 0.62801, 0.362371),
     (0.00307592, 0.00307326, 0.0030332)),
)
_KP = (220.0, 260.0, 220.0, 90.0, 90.0, 50.0)

# Shapes that stand for the printed shells; enough for the eye and for contact.
_GEOMS = {
    "shoulder_link": ('<geom class="arm" type="cylinder" size="0.045 0.035" pos="0 0 0"/>'
                      '<geom class="arm" type="box" size="0.035 0.05 0.03" pos="0 0 0.035"/>'),
    "upper_arm_link": ('<geom class="arm" type="box" size="0.022 0.03 0.13" pos="0 0 0.125"/>'
                       '<geom class="arm" type="box" size="0.035 0.03 0.022" pos="0.025 0 0.25"/>'),
    "upper_forearm_link": '<geom class="arm" type="box" size="0.095 0.026 0.024" pos="0.085 0 0"/>',
    "lower_forearm_link": '<geom class="arm" type="cylinder" size="0.024 0.035" pos="0.035 0 0" euler="0 1.5708 0"/>',
    "wrist_link": '<geom class="arm" type="box" size="0.035 0.022 0.025" pos="0.03 0 0.004"/>',
    "gripper_link": ('<geom class="arm" type="cylinder" size="0.026 0.018" pos="0.012 0 0" euler="0 1.5707963 0"/>'
                     '<geom class="arm" type="box" size="0.008 0.062 0.012" pos="0.045 0 0"/>'),
}


def camera_pose(scene: Scene) -> F64:
    """Return T_base_camera (4, 4), m, optical axes (z forward, x right, y down), with the scene's offset applied."""
    pose = level_camera(BRIDGE_CAMERA_XYZ_M, BRIDGE_CAMERA_LOOK)
    pose[:3, :3] = pose[:3, :3] @ rpy_to_matrix(np.array(scene.camera_rotation_rad, dtype=np.float64))
    pose[:3, 3] += np.array(scene.camera_offset_m)
    return pose


def _v(values: object) -> str:
    return " ".join(f"{float(x):.7g}" for x in values)  # type: ignore[attr-defined]


def _object_xml(index: int, spec: ObjectSpec) -> str:
    rgb = spec.rgb if spec.rgb is not None else COLOURS[spec.colour]
    half = spec.size_m / 2
    skin = f'rgba="{_v(rgb)} 1" friction="{spec.friction} 0.01 0.001" condim="4"'
    look = f'{skin} mass="{spec.mass_kg}"'
    if spec.shape == "plate":
        return (f'<body name="object{index}" mocap="true"><geom type="cylinder" size="0.055 {PLATE_HEIGHT_M / 2}" '
                f'pos="0 0 {PLATE_HEIGHT_M / 2}" rgba="{_v(rgb)} 1" contype="2" conaffinity="3"/></body>')
    if spec.shape == "bottle":
        return _bottle_xml(index, spec, skin)
    size = {"block": f'type="box" size="{half} {half} {half}"', "cylinder": f'type="cylinder" size="{half} {half}"',
            "bar": f'type="box" size="{half} {half * BAR_LENGTH} {half}"',
            "ball": f'type="sphere" size="{half}"'}[spec.shape]
    # A ball on a table has rolling resistance; without it, it never rests.
    rolling = 'friction="1 0.02 0.004" condim="6"' if spec.shape == "ball" else ""
    look = look if not rolling else f'rgba="{_v(rgb)} 1" mass="{spec.mass_kg}" {rolling}'
    return (f'<body name="object{index}"><freejoint name="object{index}"/><geom name="object{index}" {size} {look} '
            'contype="2" conaffinity="3"/></body>')


def _bottle_xml(index: int, spec: ObjectSpec, skin: str) -> str:
    """A wide lower part and a neck half as wide; the body's origin is at half its height, as of every object."""
    half, height = spec.size_m / 2, spec.height_m
    geoms = ""
    for name, radius, low, top, share in (("", half, 0.0, 0.65, 0.85), ("neck", half / 2, 0.65, 1.0, 0.15)):
        geoms += (f'<geom name="object{index}{name}" type="cylinder" size="{radius} {(top - low) * height / 2}" '
                  f'pos="0 0 {((low + top) / 2 - 0.5) * height}" mass="{share * spec.mass_kg}" {skin} '
                  'contype="2" conaffinity="3"/>')
    return f'<body name="object{index}"><freejoint name="object{index}"/>{geoms}</body>'


def _arm_xml() -> str:
    opening, closing = "", ""
    for name, body, pos, axis, limits, _, mass, com, quat, inertia in _LINKS:
        opening += (f'<body name="{body}" pos="{_v(pos)}"><inertial mass="{mass}" pos="{_v(com)}" quat="{_v(quat)}" '
                    f'diaginertia="{_v(inertia)}"/><joint name="{name}" axis="{_v(axis)}" range="{_v(limits)}" '
                    f'class="servo"/>{_GEOMS[body]}')
        closing += "</body>"
    fingers = '<site name="ee" pos="0.093575 0 0" size="0.002" rgba="0 0 0 0"/>'
    # At the wrist, in front of the hand's shell, looking where the fingers point; the hand points to the lower edge.
    fingers += '<camera name="wrist" pos="0.0 0 0.06" xyaxes="0 -1 0 0 0 1" fovy="100"/>'
    for side, sign in (("left", 1), ("right", -1)):
        fingers += (
            f'<body name="{side}_finger" pos="0.066 0 0"><inertial mass="0.016246" pos="0.01382 0 0" '
            f'diaginertia="4.79509e-06 3.7467e-06 1.48651e-06"/>'
            f'<joint name="{side}_finger" type="slide" axis="0 {sign} 0" '
            f'range="{FINGER_LOWER_M} {FINGER_UPPER_M}" solreflimit="0.008 1" '
            f'solimplimit="0.99 0.999 0.0005" damping="150" frictionloss="0.8" armature="0.05"/>'
            f'<geom name="{side}_finger" class="finger" type="box" size="0.0275 0.005 0.009" '
            f'pos="0.0175 {0.005 * sign} 0"/></body>')
    return opening + fingers + closing


def build_xml(scene: Scene) -> str:
    """Return the MJCF of the arm and the scene. Objects are bodies `object0..`, plates among them are mocap bodies."""
    pose = camera_pose(scene)
    x_axis, y_axis = pose[:3, 0], -pose[:3, 1]
    shade = scene.arm_shade
    light_dir = np.array([0.3, 0.02, 0.0]) - np.array(scene.light_xyz_m)
    objects = "".join(_object_xml(i, s) for i, s in enumerate(scene.objects + scene.distractors))
    actuators = "".join(
        f'<position name="{name}" joint="{name}" kp="{kp}" dampratio="1" forcerange="{-peak} {peak}" '
        f'ctrlrange="{_v(limits)}"/>'
        for (name, _, _, _, limits, peak, *_rest), kp in zip(_LINKS, _KP, strict=True))
    return f"""<mujoco model="wx250s_twin">
<compiler angle="radian" autolimits="true" eulerseq="xyz"/>
<option timestep="{PHYSICS_DT_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
<visual><global offwidth="{CAMERA_WIDTH}" offheight="{CAMERA_HEIGHT}"/><quality shadowsize="0" offsamples="0"/>
<map znear="0.02" zfar="20"/>
<headlight ambient="{_v([scene.ambient] * 3)}" diffuse="0.15 0.15 0.15" specular="0 0 0"/></visual>
<default>
<default class="arm"><geom contype="1" conaffinity="2" rgba="{_v([shade] * 3)} 1" friction="0.6 0.01 0.001"/></default>
<default class="finger"><geom contype="1" conaffinity="2" rgba="{_v([shade * 1.8 + 0.04] * 3)} 1"
 friction="1.2 0.02 0.001" condim="4" solref="0.008 1"/></default>
<default class="far"><geom contype="0" conaffinity="0"/></default>
<default class="servo"><joint armature="0.1" frictionloss="0.1" damping="0.4"/></default>
</default>
<worldbody>
<light pos="{_v(scene.light_xyz_m)}" dir="{_v(light_dir)}" cutoff="70" exponent="2"
 diffuse="{_v([scene.light] * 3)}" specular="0.1 0.1 0.1" castshadow="false"/>
<geom name="table" type="box" size="0.6 0.6 0.02" pos="0.3 0 -0.02" rgba="{_v(scene.table_rgb)} 1"
 contype="2" conaffinity="3" friction="{scene.table_friction} 0.01 0.001"/>
<geom class="far" type="plane" size="5 5 0.1" pos="0 0 -0.7" rgba="{_v([c * 0.6 for c in scene.wall_rgb])} 1"/>
<geom class="far" type="box" size="0.02 3 2" pos="1.6 0 0.3" rgba="{_v(scene.wall_rgb)} 1"/>
<geom class="far" type="box" size="3 0.02 2" pos="0 1.6 0.3" rgba="{_v([c * 0.93 for c in scene.wall_rgb])} 1"/>
<camera name="bridge" pos="{_v(pose[:3, 3])}" xyaxes="{_v(x_axis)} {_v(y_axis)}" fovy="{FOVY_DEG}"/>
<body name="base_link"><geom class="arm" type="box" size="0.09 0.055 0.035" pos="-0.03 0 0.036"/>{_arm_xml()}</body>
{objects}
</worldbody>
<contact><exclude body1="base_link" body2="shoulder_link"/></contact>
<equality><joint joint1="right_finger" joint2="left_finger" polycoef="0 1 0 0 0" solref="0.008 1"/></equality>
<actuator>{actuators}<motor name="gripper" joint="left_finger" ctrlrange="-60 60"/></actuator>
</mujoco>"""
