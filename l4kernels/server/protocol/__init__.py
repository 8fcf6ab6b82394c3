"""Requests as OpenAI's clients send them, with the bounds of their fields."""
