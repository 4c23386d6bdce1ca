"""The page a user reads in the end, and its pictures."""

from search.report.page import write_report

__all__ = ["write_report"]
