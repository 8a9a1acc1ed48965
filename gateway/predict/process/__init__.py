"""The predictor: its side on the event loop, and the child process that holds the models."""
