"""Frames of videos, by their time stamps, decoded in a process of their own."""
