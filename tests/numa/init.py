"""The first process of the machine: prepares it, runs ``inside.py``, and ends it."""

import ctypes
import os
import subprocess
import sys
import traceback

LIBC = ctypes.CDLL(None, use_errno=True)
REBOOT = 0x01234567  # QEMU is told to end instead

FILE_SYSTEMS = {"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/shm": "tmpfs"}


def mount(where, kind):
    os.makedirs(where, exist_ok=True)
    if LIBC.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), where)


try:
    for where, kind in FILE_SYSTEMS.items():
        mount(where, kind)
    with open("/dev/ttyS1", "wb") as report:
        script = os.path.join(os.path.dirname(__file__), "inside.py")
        subprocess.run([sys.executable, script], stdout=report)
except BaseException:
    traceback.print_exc()
finally:  # a first process that ends is a panic
    LIBC.reboot(REBOOT)
