"""Brings two networks together by name, and says what differs."""
