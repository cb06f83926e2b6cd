import signal
import threading

import pycolmap  # noqa: F401

# On import, COLMAP's logging takes over SIGTERM to print a stack of C++ calls. This restores Python's handler.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not None:
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
