"""Measure the gateway against no gateway, over real HTTP."""
