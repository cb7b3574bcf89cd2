"""bench/ceilings"""
