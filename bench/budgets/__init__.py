"""bench/budgets"""
