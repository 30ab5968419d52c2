"""Fakes and oracles that tests and bench share."""
