"""Policies: vision-language-action models and their adapters."""
