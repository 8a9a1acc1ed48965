"""Judge the forecasts on rows that the models never saw."""
