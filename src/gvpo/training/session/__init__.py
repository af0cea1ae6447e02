"""Parts of a session of a run that also work outside of one."""
