"""Recorded episodes: write, read, mark, check and repair them. Needs no ROS."""
from world_gymnast_ros.episodes.outcome import ENDED_BY, OUTCOMES, Outcome, add_judgement, mark_outcome, read_outcome
from world_gymnast_ros.episodes.steps import StepTable, read_steps, step_table
from world_gymnast_ros.episodes.writer import EpisodeWriter, new_episode_id

__all__ = [
    "ENDED_BY",
    "OUTCOMES",
    "EpisodeWriter",
    "Outcome",
    "StepTable",
    "add_judgement",
    "mark_outcome",
    "new_episode_id",
    "read_outcome",
    "read_steps",
    "step_table",
]
