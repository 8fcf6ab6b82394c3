"""The HTTP server: OpenAI's interface to an engine."""
