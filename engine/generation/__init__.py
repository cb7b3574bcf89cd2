"""A request turned into sections of video."""
