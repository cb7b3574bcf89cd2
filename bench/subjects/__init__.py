"""bench/subjects"""
