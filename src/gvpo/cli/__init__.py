"""The command line: `gvpo COMMAND` is the module COMMAND, and a part of a command begins with its name.

`main` finds the command, `options` has the flags and settings that commands share, `progress` their progress bars, and
`shipped` the recipes and pages that come with gvpo.
"""
