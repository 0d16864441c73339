"""What is counted, and how it is shown.

The counters stand on a low floor that every room may fill; the reports stand on a high one.
"""
