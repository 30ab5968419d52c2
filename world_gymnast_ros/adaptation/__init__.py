"""Captured frame to LoRA step: session, rollout, advantage, rollout filter, promotion. No torch."""
