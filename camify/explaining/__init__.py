"""Explaining files and comparing methods: what stands behind the commands."""
