"""Untrusted Python in separate processes: no network, no files but the standard library's, hard limits, no survivors.

    run.py       the parent's side: scores a program by its output, functions by tests in another sandbox
    process.py   starts one sandbox and waits for it
    isolation.py checks that the sandbox works on this machine
    jail.py      runs in the sandbox's first processes: namespaces, limits, the end of all processes
    guest.py     runs the code, or the tests, inside
    suite.py     runs the tests that a script only defines
    values.py    converts values that travel between the two

The sandbox also uses `gvpo.workers.kernel` (system calls that Python has no names for) and `gvpo.workers.children` (the
children of a supervisor). These two, and the modules from jail.py on, are run by a bare interpreter and import only the
standard library.
"""
