"""Running on a cluster: what jobs ask for, what a site is like, which jobs are running.

No module that a job runs imports it, so that a better estimate never makes a fit run again.
"""
