"""`python workers.py FAULT FOLDER TIMEOUT SIZE`: a small streamed run of which one worker meets a fault in its second epoch.

Faults: killed, stopped, stuck, raises (RuntimeError), breaks (another error); none.
"""

import dataclasses
import os
import signal
import sys
import time

import ranks
import torch
from torch.utils.data import get_worker_info

from layerzoo import cli
from layerzoo.data.streaming import Stream


def fail(fault):
    print(f"pid {os.getpid()} now", flush=True)
    if fault in ("killed", "stopped"):
        os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    if fault == "stuck":
        time.sleep(10_000)
    if fault != "stopped":
        raise (RuntimeError if fault == "raises" else KeyError)("no such luck")


if __name__ == "__main__":
    fault, folder, timeout, size = sys.argv[1:]
    torch.set_num_threads(1)
    made = ranks.recipe(folder, 1)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, img_size=int(size), pipeline="streaming", num_workers=2, worker_timeout=float(timeout)))
    cli._start = lambda args: (made, "toy")
    read, asked = Stream.__getitem__, []

    def reads(stream, request):
        asked.append(request)
        if fault != "none" and get_worker_info().id == 1 and request[0] == 1 and stream.augment and len(asked) > 6:
            fail(fault)
        return read(stream, request)

    Stream.__getitem__ = reads
    sys.exit(cli.main(["fit", "toy"]))
