"""The native engine, in C++20: streams programs over shared memory and TCP.

    wire.hpp                             what crosses between ranks
    lane.hpp, shm_lane.hpp, tcp_lane.hpp   ordered streams of messages to one peer
    program.hpp                          steps on bytes, and what they wait for
    engine.hpp, engine.cpp               runs programs; waiting.cpp when nothing moves; control.cpp watches the peers
    trace.hpp                            when each step of a call began and ended
    kernels.hpp, kernels.cpp             combine arrays, for several instruction sets
    quick_calls.hpp, module.cpp          the face to Python
    links.py, transport.py               makes the connections; the engine as a transport

May be imported by `transports` and above.
"""
