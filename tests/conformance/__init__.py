"""The kit of transports/conformance, run on every transport there is, and on broken ones that it must catch."""
