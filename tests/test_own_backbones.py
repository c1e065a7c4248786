"""Backbones of one's own in runs: what tells their videos from others."""

import pytest
from run_workers import configuration

from miga_bench.cli import main
from miga_bench.harness.predict import parse

CODE = """\
from simple_backbone import SimpleBackbone


class Mine(SimpleBackbone):
    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = gain
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Return a command by the gain and the code of a backbone."""
    monkeypatch.syspath_prepend(tmp_path)
    module = f"own_{tmp_path.name}"  # jsonargparse remembers classes by their paths

    def write(code=CODE, **given):
        (tmp_path / f"{module}.py").write_text(code)
        backbone = {"class_path": f"{module}.Mine", "init_args": given}
        few = {"data__limit": 1, "data__seeds": [0], "model__backbone": backbone}
        return ["--config", str(configuration(tmp_path, **few))]

    return write


def key(arguments):
    cli = parse(arguments)
    cli.model.trainer = cli.trainer
    cli.model.load()
    data = cli.datamodule
    (item,) = cli.model.items(data.wishes, data.seeds, data.frames).values()
    return item.key


def test_other_arguments_or_code_are_another_backbone(arguments):
    """Breaks if a backbone of one's own gets videos that it made with other arguments or other code."""
    first = key(arguments(gain=1.0))
    assert key(arguments()) == first
    assert len({first, key(arguments(gain=0.3)), key(arguments(CODE + "# new\n"))}) == 3


def test_a_backbone_may_say_itself_what_decides(arguments):
    """Breaks if a folder or a device that decides nothing makes all videos anew."""
    own = CODE + '        self.configuration_hash = "mine"\n'
    assert key(arguments(own, gain=1.0)) == key(arguments(own + "# new\n", gain=0.3))


def test_a_run_of_other_arguments_is_refused(arguments, capsys):
    """Breaks if a run says that it is done by arguments that its videos were not made with."""
    assert main(["predict", *arguments(gain=1.0)]) == 0
    assert main(["predict", *arguments(gain=1.0)]) == 0
    capsys.readouterr()
    assert main(["predict", *arguments(gain=0.3)]) == 2
    assert (
        "begun with other values, then -> now: model.configuration_hash" in capsys.readouterr().err
    )
