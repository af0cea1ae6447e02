"""The command line: `gvpo COMMAND` is the module COMMAND, and modules for parts of a command begin with its name.

`main` finds the command, `options` has the flags and settings that commands share, `progress` their progress bars, and
`shipped` the recipes and pages that come with gvpo, and how a recipe is found.
"""
