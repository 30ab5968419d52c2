"""The error tree. Every message names the value, the limit and the remedy. Imports nothing."""


class WorldGymnastError(Exception):
    """Base of every error this package raises on purpose."""


class BadFrame(WorldGymnastError):
    """A camera frame has the wrong size, type or encoding."""


class StaleFrame(WorldGymnastError):
    """A camera frame is too old to act on."""


class BadAction(WorldGymnastError):
    """An action or chunk has the wrong shape or holds non-finite numbers."""


class Unreachable(WorldGymnastError):
    """Inverse kinematics found no joint solution inside the limits."""


class BadConfig(WorldGymnastError):
    """A configuration key is unknown or its value is out of range."""


class BadCheckpoint(WorldGymnastError):
    """A checkpoint is missing, corrupt, or of another kind than asked for."""


class AdapterMismatch(WorldGymnastError):
    """An adapter was trained for another base policy, or its hash does not match."""


class UnknownScene(WorldGymnastError):
    """A twin scene name or file cannot be resolved."""


class BadInstruction(WorldGymnastError):
    """The instruction is empty or not one the model can read."""


class BadBudget(WorldGymnastError):
    """An adaptation budget is zero, negative or too small for one update."""


class NotTrusted(WorldGymnastError):
    """The world model or judge did not pass its release gate for what was asked."""


class EpisodeError(WorldGymnastError):
    """An episode could not be written or read; earlier episodes are untouched."""


class BadPayload(WorldGymnastError):
    """What came over HTTP is not what `POST /act` takes or answers."""


class RemotePolicyError(WorldGymnastError):
    """A policy server gave no chunk: it is dead, slow, refuses, or answers what no arm should play."""


class RemoteModelError(WorldGymnastError):
    """A model that was asked, mostly on a server, gave no usable answer: it is dead, slow, refuses, or answers
    something else."""


class WrongConvention(WorldGymnastError):
    """A policy's actions are no Bridge actions: an absolute pose, network output, degrees, another gripper."""


class NotInstalled(WorldGymnastError):
    """What was asked for needs a package that this environment lacks."""


def one_line(error: object, longest: int = 160) -> str:
    """Return what another library says, for a message of one line: white space folded, at most `longest` letters."""
    return " ".join(str(error).split())[:longest]
