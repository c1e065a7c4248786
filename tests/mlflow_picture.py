"""Make the picture of a run's page in MLflow that README shows; needs Chromium.

    miga-bench sync runs/components-tiny-wan                        # where the run was not tracked
    .venv/bin/python tests/mlflow_picture.py runs/stage2-tiny-wan reports/mlflow.png

MLflow is started on ``mlflow.db`` beside the run, and stopped again.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from mlflow_stores import mlflow_server

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
WIDTH, HEIGHT, PATIENCE = 1600, 857, 300
# What a visitor has chosen who trains models, and has closed the assistant.
CHOSEN = """localStorage['mlflow.workflowType_v1'] = '"machine_learning"';
localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = 'true';
localStorage['mlflow.assistant.panelOpen_v1'] = 'false';"""
# The note is folded where it is long. True once it is there and unfolded, and no assistant beside it.
UNFOLD = """(() => {
  const named = text => [...document.querySelectorAll('button')].find(b => b.innerText.trim() === text);
  named('Show more')?.click();
  return !!document.querySelector('table') && document.body.innerText.includes('clustered by prompt')
    && !named('Show more') && !document.body.innerText.includes('Ask questions about');
})()"""


def browser():
    """Return the path of a Chromium, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(profile):
    """Run a headless Chromium; yields what sends a command of its protocol and returns the answer."""
    theirs, send = os.pipe()
    receive, theirs_too = os.pipe()
    # Chromium reads commands from 3 and writes answers to 4; copies beyond 10 are in nobody's way
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs, theirs_too)]
    process = subprocess.Popen(
        [browser(), *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=lambda: [os.dup2(end, number) for number, end in enumerate(ends, 3)],
    )
    for end in (theirs, theirs_too, *ends):
        os.close(end)
    try:
        with open(send, "wb", buffering=0) as out, open(receive, "rb") as answers:
            number = 0

            def ask(method, session=None, **parameters):
                nonlocal number
                number += 1
                told = {"id": number, "method": method, "params": parameters}
                told |= {"sessionId": session} if session else {}
                out.write(json.dumps(told).encode() + b"\0")
                while (answer := json.loads(_until_zero(answers))).get("id") != number:
                    pass  # of something that happened on the page
                return answer["result"]

            yield ask
    finally:
        process.kill()
        process.wait()


def _until_zero(stream):
    found = bytearray()
    while (byte := stream.read(1)) not in (b"\0", b""):
        found += byte
    return bytes(found)


def page_of(uri, name):
    """Return the address of the page of a run, the newest of its name that has no parent."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"attributes.run_name = '{name}'")
    run = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
    return f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def picture(run, file):
    """Write a PNG of the page of a run that MLflow knows.

    Args:
        run: The run's folder; ``mlflow.db`` lies beside it.
        file: Where the picture goes.
    """
    run = Path(run).resolve()
    with (
        tempfile.TemporaryDirectory() as scratch,
        mlflow_server(scratch, f"sqlite:///{run.parent}/mlflow.db") as uri,
        chromium(f"{scratch}/profile") as ask,
    ):
        target = ask("Target.createTarget", url="about:blank")["targetId"]
        session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        ask("Emulation.setDeviceMetricsOverride", session, **size)
        ask("Page.enable", session)
        ask("Page.addScriptToEvaluateOnNewDocument", session, source=CHOSEN)
        ask("Page.navigate", session, url=page_of(uri, run.name))
        until = time.monotonic() + PATIENCE
        while not ask("Runtime.evaluate", session, expression=UNFOLD)["result"].get("value"):
            assert time.monotonic() < until, "the page does not show the run's note"
            time.sleep(1)
        time.sleep(2)  # what is drawn after the note
        shot = ask("Page.captureScreenshot", session, format="png")
    Path(file).write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    picture(*sys.argv[1:])
