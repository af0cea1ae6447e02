"""Attention on a CPU. This package is imported only on CPUs, and gets no new features."""
