"""Evaluation of the forecasts on rows that the models never saw."""
