"""A verb in place of training, for the runner's tests: each run is a little Python program.

The program has `workdir`, `name` and the modules that such programs need.
"""

import json
import os
import pathlib
import signal
import sys
import time

from t5lite.system.errors import Interrupted, UserError, clean_exit

KNOWN = {
    **{"json": json, "os": os, "signal": signal, "sys": sys, "time": time},
    **{"UserError": UserError, "Interrupted": Interrupted},
}


def main(arguments):
    """Run the program in the file that the first argument names, for the workdir in the second."""
    text, workdir = pathlib.Path(arguments[0]).read_text(), pathlib.Path(arguments[1])
    with clean_exit():
        exec(compile(text, "program", "exec"), {**KNOWN, "workdir": workdir, "name": workdir.name})
