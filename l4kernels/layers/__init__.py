"""Modules that own weights and call ops."""
