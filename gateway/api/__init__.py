"""The HTTP surface: authentication, OpenAI routes, prediction, jobs, administration."""
