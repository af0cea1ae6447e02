"""Sampling from vLLM servers over HTTP: requests, load, failures, and new weights."""
