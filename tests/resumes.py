"""`python resumes.py PART ...`: what comes back of a training that keeps these parts alone, as JSON.

In a process of its own: after a backward pass, of any test before, torch refuses one in a fork.
"""

import json
import sys

import torch

from layerzoo.report import bench_resume

KEPT = sys.argv[1:]


def training(folder, watch, stop):
    path = folder / "last.pt"

    def save(model, optimizer, epoch, batch):
        torch.save([epoch + 1, torch.get_rng_state(), model.state_dict(), optimizer.state_dict()], path)

    def load(model, optimizer):
        epoch, randomness, weights, moments = torch.load(path, weights_only=True)
        if "weights" in KEPT:
            model.load_state_dict(weights)
        if "moments" in KEPT:
            optimizer.load_state_dict(moments)
        if "randomness" in KEPT:
            torch.set_rng_state(randomness)
        return epoch

    bench_resume._loop(watch, stop, save, load if path.exists() else None)


torch.set_num_threads(1)
bench_resume.TRAININGS["mine"] = training
print(json.dumps(bench_resume.resumed("mine", 8)))
