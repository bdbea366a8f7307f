"""Files for real clusters, and what checks them: `python -m cluster.check`."""
