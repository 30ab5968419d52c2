"""Recorded episodes: write, read, mark, check and repair them. Needs no ROS."""
from world_gymnast_ros.episodes.listing import EpisodeInfo, check, describe, list_episodes
from world_gymnast_ros.episodes.marking import add_judgement, mark_outcome
from world_gymnast_ros.episodes.outcome import ENDED_BY, OUTCOMES, Outcome, read_outcome
from world_gymnast_ros.episodes.reader import Episode, read_episode
from world_gymnast_ros.episodes.recover import Salvage, repair
from world_gymnast_ros.episodes.steps import StepTable, read_steps
from world_gymnast_ros.episodes.writer import EpisodeWriter, new_episode_id, unused_episode_id

__all__ = [
    "ENDED_BY",
    "OUTCOMES",
    "Episode",
    "EpisodeInfo",
    "EpisodeWriter",
    "Outcome",
    "Salvage",
    "StepTable",
    "add_judgement",
    "check",
    "describe",
    "list_episodes",
    "mark_outcome",
    "new_episode_id",
    "read_episode",
    "read_outcome",
    "read_steps",
    "repair",
    "unused_episode_id",
]
