"""Pulling a checkpoint from servers that fail and lie: `python -m layerzoo.report.bench_downloads --out downloads.csv`.

`layerzoo.hub.pull` of an address beside `hf_hub_download` of the same weights, from one server on this machine. A try ends `right`, `refused` (an
error), `wrong` (other bytes, without a word), or `waits` after a minute and a half; and so often the server was asked for the weights.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import http.server
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerzoo.quiet import quiet
from layerzoo.report.measured import new_path, write_rows

PULLERS = ("layerzoo", "huggingface_hub")
WEIGHTS, LIMIT = "model.safetensors", 90
EIGHT, UNLOCKED = "eight at once", "eight at once, where nothing can be locked"
FAULTS = (
    "none", "a bit flipped", "other bytes of the same size", "cut short", "cut short once", "an error once", "a byte a second", "more than announced",
    EIGHT, UNLOCKED)


@contextmanager
def _serving(folder: Path, fault: str) -> Iterator[type]:
    """A server of the files of a folder, as an address of ours and as a repository of the Hub; the weights meet the fault, and are `asked` for."""
    class Handler(http.server.BaseHTTPRequestHandler):
        asked, url = 0, ""

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, with_body: bool) -> None:
            path = folder / self.path.rsplit("/", 1)[1]
            if not path.is_file():
                self.send_error(404)
                return
            body = whole = path.read_bytes()
            faulty = with_body and path.name == WEIGHTS
            Handler.asked += faulty
            if faulty and fault == "an error once" and Handler.asked == 1:
                self.send_error(500)
                return
            if faulty:
                body = _spoiled(whole, fault, Handler.asked)
            self.send_response(200)
            tag = hashlib.sha256(whole).hexdigest()
            headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{tag}"', "X-Linked-ETag": f'"{tag}"', "X-Linked-Size": len(whole), "Content-Length": len(whole)}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            step, pause = _pace(fault, len(body)) if faulty else (len(body), 0)
            for start in range(0, len(body) if with_body else 0, step):
                self.wfile.write(body[start:start + step])
                self.wfile.flush()
                time.sleep(pause)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *client: None  # a client that has heard enough hangs up
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        Handler.url = f"http://127.0.0.1:{server.server_port}"
        yield Handler
        server.shutdown()


def _pace(fault: str, size: int) -> tuple[int, float]:
    """Bytes at a time, and the seconds after them."""
    return (1, 1) if fault == "a byte a second" else (-(-size // 8), 0.25) if fault in (EIGHT, UNLOCKED) else (size, 0)


def _spoiled(body: bytes, fault: str, asked: int) -> bytes:
    half = len(body) // 2
    if fault == "a bit flipped":
        return body[:half] + bytes([body[half] ^ 1]) + body[half + 1:]
    if fault == "other bytes of the same size":
        return body[:half] + bytes(len(body) - half)
    if fault == "cut short" or (fault == "cut short once" and asked == 1):
        return body[:half]
    return body + body if fault == "more than announced" else body


def bench_downloads() -> list[dict]:
    """One row for each fault: how either ended, after how many seconds, and after how many requests for the weights."""
    from layerzoo.checkpoint import save_checkpoint
    from layerzoo.models import create_model

    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "served")
        model = create_model("vit_tiny", num_classes=2, img_size=8, options={"dim": 24, "depth": 1})
        save_checkpoint(folder, model, classes=["a", "b"], mean=[0.5] * 3, std=[0.5] * 3, metrics={})
        for fault in FAULTS:
            row = {"fault": fault}
            for name in PULLERS:
                began = time.perf_counter()
                with _serving(folder, fault) as served, tempfile.TemporaryDirectory(dir=root) as cache:
                    row[name] = _pull(name, served.url, Path(cache), folder, fault)
                row |= {f"{name} s": f"{time.perf_counter() - began:.1f}", f"{name} requests": served.asked}
            rows.append(row)
            print("  ".join(f"{value!s:>20}" for value in row.values()), flush=True)
    return rows


def _pull(name: str, address: str, cache: Path, folder: Path, fault: str) -> str:
    own = {"LAYERZOO_CACHE": str(cache), "HF_HOME": str(cache), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-m", "layerzoo.report.bench_downloads", "--pull", name, "--from", address, *(["--unlocked"] if fault == UNLOCKED else [])]
    many = 8 if fault in (EIGHT, UNLOCKED) else 1
    pulls = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | own) for _ in range(many)]
    ends = Counter(_end(pull, (folder / WEIGHTS).read_bytes()) for pull in pulls)
    return ", ".join(f"{count} {end}" if many > 1 else end for end, count in ends.items())


def _end(pull: subprocess.Popen, weights: bytes) -> str:
    try:
        said, _ = pull.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        pull.kill()
        pull.communicate()
        return "waits"
    if pull.returncode:
        return "refused"
    return "right" if Path(said.strip().splitlines()[-1]).read_bytes() == weights else "wrong"


def main() -> None:
    """Print every row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a new .csv for the results")
    parser.add_argument("--pull", help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="address", help=argparse.SUPPRESS)
    parser.add_argument("--unlocked", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet()
    if args.unlocked:
        fcntl.flock = fcntl.lockf = lambda *given: None  # as on file systems that say yes to all
    if args.pull == "layerzoo":
        from layerzoo.hub import pull

        print(pull(f"{args.address}/a") / WEIGHTS)
    elif args.pull:
        from huggingface_hub import hf_hub_download

        print(hf_hub_download("a/b", WEIGHTS))
    else:
        out = args.out and new_path(args.out)
        rows = bench_downloads()
        if out:
            write_rows(rows, out)


if __name__ == "__main__":
    main()
