"""Test-time training of a vision-language-action policy for the WidowX 250s on ROS 2.

Kept light on purpose: every `import world_gymnast_ros.msg` runs this file. `extend_path` lets the
source tree and the generated interfaces (msg, srv, action) of an installed copy live side by side.
"""
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
