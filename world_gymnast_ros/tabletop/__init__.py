"""Optional: geometry of small objects on a table. Reached through protocols only; can be deleted in one move."""
