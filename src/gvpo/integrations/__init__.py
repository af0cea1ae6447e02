"""Plug-ins for other trainers. `import gvpo` imports none of them, and each needs only its own trainer."""
