"""Disposable indexes in SQLite: lists, counts and searches that do not look at every record.

Never the truth: each answers for the tips of the refs as they are, or is not asked.
"""
