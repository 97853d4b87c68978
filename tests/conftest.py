"""As the command line does: threads that wait do not spin. Read when torch is loaded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
