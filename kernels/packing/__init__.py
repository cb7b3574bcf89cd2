"""Patches and rotary tables of the packed sequence."""
