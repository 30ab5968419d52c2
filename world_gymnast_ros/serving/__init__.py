"""Policies over HTTP: server, client, json_numpy codec."""
