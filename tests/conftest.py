"""One thread for each worker of a parallel run: threads of several workers that spin for one
another on the same cores cost far more than they bring."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for subprocesses
