"""The kit of the tests: a scripted provider, the real process, a raw socket. No patching."""
