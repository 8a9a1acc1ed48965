"""Offline tools. The serving process does not import this folder and runs without it."""
