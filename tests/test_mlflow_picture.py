"""The picture of MLflow in README can be made again."""

import pytest
from mlflow_picture import HEIGHT, WIDTH, browser, picture
from mlflow_stores import make_run
from PIL import Image

from miga_bench.cli import main


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no Chromium here to open the page in")
def test_a_runs_page_becomes_a_picture(tmp_path):
    """Breaks if MLflow's page no longer shows a run's note where the script looks for it."""
    run = make_run(tmp_path / "runs", prompts=6)
    assert main(["sync", str(run)]) == 0
    picture(run, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert page.size == (WIDTH, HEIGHT)
        colors = page.convert("RGB").getcolors(WIDTH * HEIGHT)
    assert len(colors) > 50  # letters, not a blank page
