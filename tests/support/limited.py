"""Run a program that cannot write files of more than some bytes, as if the disk were full.

python -m tests.support.limited BYTES MODULE [ARGUMENTS]
"""

import resource
import runpy
import sys

if __name__ == "__main__":
    size, *sys.argv = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
