from world_gymnast_ros.tasks import *  # noqa: F403
from world_gymnast_ros.tasks import Task, Truth, progress  # noqa: F401
