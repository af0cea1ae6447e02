"""Inputs of chat templates in addition to messages: the descriptions of tools."""
