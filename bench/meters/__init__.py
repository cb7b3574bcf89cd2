"""bench/meters"""
