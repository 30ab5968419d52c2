"""`python -m world_gymnast_ros.cli`, the same as `world-gymnast`."""
import sys

from world_gymnast_ros.cli import main

sys.exit(main())
