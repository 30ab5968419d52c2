"""Exporters of recordings: LeRobot v3, WorldGym, Bridge, IRASim."""
