"""`python -m bench simulate`: a collective in virtual time on any cluster, without a rank being started.

command.py has the command line; clusters.py makes the clusters, contestants.py finds what is run on them, and table.py
what came out, in words; formula.py has the ring where it is too long to simulate, picture.py and tracing.py what is
drawn.
"""
