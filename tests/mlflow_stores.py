"""For tests of tracking: hand-made runs, real MLflow servers, and servers that are broken on purpose."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from ports import free_port

from miga_bench.harness.seals import sealed

STARTED = "2026-01-02T03:04:05+00:00"


def make_run(root, name="parts", arms=("plain", "searched"), prompts=2, scores=True):
    """Write a finished run of short stories: an item per arm and prompt."""
    folder = Path(root) / name
    (folder / "videos").mkdir(parents=True)
    wishes = {
        f"p{n}": {"prompt": f"prompt {n}", "then": {}, "frames": 9, "seeds": [0]}
        for n in range(prompts)
    }
    items = {}
    for a, arm in enumerate(arms):
        for p, prompt in enumerate(wishes):
            key = f"{name}{arm}{prompt}".ljust(16, "0")[:32]
            items[f"{arm}/{prompt}-0"] = key
            make_item(Path(root) / "items" / key, 0.5 + 0.1 * a + 0.02 * p, scores)
    document = {
        "format": 1,
        "name": name,
        "made_of": {
            "model": {
                "backbone": "tiny-wan",
                "weights_hash": "abc",
                "precision": "32-true",
                "height": 64,
                "width": 64,
            },
            "arms": {
                arm: {"method": "miga", "settings": {"steps": 8, "zigzag": n + 1}}
                for n, arm in enumerate(arms)
            },
            "prompts": wishes,
        },
        "items": items,
        "scorers": {"suite-1.json": {"scorer": "suite", "networks": "tiny"}},
        "configuration": {"run": {"about": {"title": "Parts", "question": "Which part?"}}},
        "provenance": {
            "started": STARTED,
            "git": {"commit": "c0ffee", "changed": False},
            "versions": {"miga-bench": "0.1.0"},
            "hardware": {"device": "cpu", "cores": 2},
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    status = {"status": "done", "ended": "2026-01-02T03:05:05+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def make_item(folder, score, scores):
    folder.mkdir(parents=True)
    (folder / "video.mp4").write_bytes(b"video" * 100)
    (folder / "sheet.png").write_bytes(b"sheet")
    passes = [
        {"similarity": 0.9, "triggered": False, "accepted": False, "windows": 1},
        {"similarity": 0.5, "triggered": True, "accepted": True, "windows": 5},
        {"similarity": None, "triggered": False, "accepted": False, "windows": 6},
    ]
    (folder / "passes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in passes))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in ("video.mp4", "sheet.png")
    }
    manifest = {
        "format": 1,
        "status": "done",
        "error": None,
        "frames": 9,
        "frame_rate": 8.0,
        "cost": {"nfe": 18, "windows": 6, "reflection": {"search_windows": 3}},
        "files": files,
        "timings": {
            "started": STARTED,
            "hardware": {},
            "processes": 1,
            "seconds": {"stage 1": 1.0, "decode": 0.5},
            "total_seconds": 1.5,
            "peak_memory_mib": {"process": 300.0},
        },
    }
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    if scores:
        add_score(folder, "subject_consistency[tiny]", score)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def add_score(folder, label, value):
    """Score an item, once more or for the first time."""
    (folder / "scores").mkdir(exist_ok=True)
    document = {
        "video": sha256(folder / "video.mp4"),
        "scores": {label: value},
        "reasons": {},
        "series": {label: [[0, 3, value], [4, 8, value - 0.1]]},
    }
    (folder / "scores" / "suite-1.json").write_text(json.dumps(sealed(document)))


@contextmanager
def mlflow_server(folder, store, patience=300):
    """Run a real server on loopback; it and all its workers are ended for good."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", store]
    command += ["--artifacts-destination", str(Path(folder) / "served")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    with open(Path(folder) / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
    try:
        _wait_until_healthy(server, port, time.monotonic() + patience, folder)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(server, port, until, folder):
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError((Path(folder) / "server.log").read_text()[-2000:])


@contextmanager
def broken_server(answer):
    """Listen on loopback; ``answer`` is what every request gets, None is nothing ever."""
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            if answer is not None:
                connection.recv(65536)
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        for connection in held:
            connection.close()


@contextmanager
def mortal(uri):
    """Stand before a server; yields an address that reaches it, and what makes it die."""
    host, port = uri.removeprefix("http://").split(":")
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def pump(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            end.close()

    def serve():
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection((host, int(port)))
                held.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def die():
        for end in (listening, *held):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", die
    finally:
        die()
