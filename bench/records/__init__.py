"""bench/records"""
