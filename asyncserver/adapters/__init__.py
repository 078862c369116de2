"""Existing asyncio protocols and callbacks as handlers."""
