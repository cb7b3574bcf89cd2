"""bench/pace"""
