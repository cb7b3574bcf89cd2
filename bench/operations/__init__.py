"""bench/operations"""
