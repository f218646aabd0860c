"""The libraries that the bench measures beside ours, each in processes and an environment of its own.

`worker.py` is the one script those processes run; it loads `gloo.py` or `mpi.py` from beside itself, so that
a contender's environment needs numpy and the contender, and nothing of this project. No file here imports
another package of the project.
"""
