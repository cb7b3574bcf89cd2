"""bench/constant"""
