"""Offline tools on the rooms that serve. Nothing that serves imports this folder."""
