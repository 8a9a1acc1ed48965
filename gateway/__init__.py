"""SageSched Gateway: predict, schedule, place, relay, learn."""

__version__ = "0.1.0"
