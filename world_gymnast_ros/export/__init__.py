"""Exporters of recorded episodes to other projects' formats; each takes episodes and a folder."""
