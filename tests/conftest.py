"""For all tests: Ray's settings stand before anything imports Ray, as in the command line."""

from orchestrator import environment

environment.prepare_ray(local=True)
