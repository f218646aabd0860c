"""torch's own tests of distributed backends, run on treering and on Gloo (`make test-torch-suite`)."""
