"""Distributor (一稿多发): one approved story, every outlet, every distribution counted."""

__version__ = "0.1.0"
