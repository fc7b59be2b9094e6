"""Readers of files, one module for each family of formats; see `aioserving.jobs.inputs`."""
