"""The native engine, in C++20: streams programs over shared memory and TCP.

wire.hpp what crosses between ranks · lane.hpp, shm_lane.hpp, tcp_lane.hpp ordered streams to a peer · program.hpp steps
on bytes · engine.hpp, engine.cpp runs them and watches the peers · kernels.cpp combines arrays · module.cpp for Python.
links.py makes the connections. May be imported by `transports` and above.
"""
