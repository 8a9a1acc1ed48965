"""The gateway against no gateway, over real HTTP."""
