"""Where every file came from: what a job writes down about itself, and how that is checked afterwards.

A job's *record* names what went in and out with digests, the code, configuration, software and machine. Records form
a chain: each names the records of the jobs that made its inputs by their own digests. Nothing here changes a result.
"""
