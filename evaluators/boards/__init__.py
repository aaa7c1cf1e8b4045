"""Boards over ssh: how the measuring code and the files of a call get there, and how calls are answered.

`client` runs here; `boot`, `agent`, `place` and `facts` run on the board, where there is NumPy, a runtime, and nothing else of this project's needs.
"""
