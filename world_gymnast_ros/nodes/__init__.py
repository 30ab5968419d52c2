"""The ROS graph. The only place that imports rclpy; `convert.py` alone imports message classes."""
