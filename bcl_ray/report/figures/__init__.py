"""The figures of runs and searches: functions from data to a matplotlib Figure.

They use matplotlib's object interface only, so no window opens and no figure stays registered.
"""
