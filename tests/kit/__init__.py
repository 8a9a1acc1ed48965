"""What tests stand on: a scripted provider, the real process, a raw socket. No patching."""
