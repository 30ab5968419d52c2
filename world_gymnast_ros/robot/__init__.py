"""Facts of the WidowX 250s, in numpy: actions, kinematics, gripper, clearance, motion profile, silhouette, camera."""
