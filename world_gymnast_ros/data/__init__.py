"""What learning reads: episodes, clips, frame tables, labels."""
