"""The ROS graph. The only place that imports rclpy; `convert.py` alone imports message classes."""
import os
import sys

from world_gymnast_ros.nodes import environment

if "rclpy" not in sys.modules and (fault := environment.fault(os.environ)):
    # Here, because ROS ends the process while rclpy is loaded: no later place could say which variable it was.
    print(f"error: {fault}", file=sys.stderr)
    raise SystemExit(2)
