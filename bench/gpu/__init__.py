"""bench/gpu"""
