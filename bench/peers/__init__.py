"""bench/peers"""
