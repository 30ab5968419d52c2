"""Image to command: guard, arm state, limits, homing, chunk player, query gate. No clock, no ROS."""
