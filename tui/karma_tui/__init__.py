"""The dashboard of Karma: one screen that tells a fleet's truth.

`karmactl tui` starts it. The pictures it shows are values: `model` computes them from what the nodes
answered and imports neither a terminal nor a clock; `poller` is the only module that talks to nodes; screens
and widgets show what they are given.
"""
