"""Untrusted Python in processes of its own: no network, no files but the standard library's, hard limits, no survivors.

    run.py       the host's side: judges a program by its output, functions by tests in another jail
    process.py   starts one jail and waits for it
    isolation.py does the jail hold on this machine?
    jail.py      runs in the jail's first processes: namespaces, limits, the end of everything that was started
    kernel.py    the system calls that Python has no names for
    children.py  the children of a supervisor, of a worker's too
    guest.py     runs the code, or the tests, inside
    suite.py     runs the tests that a script only defines
    values.py    how values travel between the two

The modules from jail.py on are run by a bare interpreter and import the standard library only.
"""
