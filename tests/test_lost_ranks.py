"""A rank that is gone, or a machine of them: who notices, what is said, and that nobody waits for ever."""

import contextlib
import socket
import time
from types import SimpleNamespace

import pytest
import run_workers
import torch
from run_workers import configuration

from miga_bench.errors import FailedError
from miga_bench.harness import lifeline, ranks
from miga_bench.harness.lifeline import Lifeline

GONE = (
    "miga-bench: another process of the run is gone: see whether the system killed it for lack of memory;"
    " the same command makes what is missing"
)


def two_processes(tmp_path, grace=30.0, victim=None, **changes):
    """Run the command in two processes; return how each ended, and what each said to the user."""
    config = configuration(tmp_path, trainer__devices=2, trainer__strategy="ddp", **changes)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for number in range(2):
        environment = run_workers.torchrun(number, 2, store.port)
        task = (str(config), environment, str(tmp_path / f"{number}"), 300.0, grace)
        processes.append(run_workers.context().Process(target=run_workers.command, args=task))
        processes[-1].start()
    try:
        for number, process in enumerate(processes):
            if number != victim:
                process.join(run_workers.WAIT)
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = [(tmp_path / f"{n}").read_text().splitlines() for n in range(2)]
    lines = [[line for line in each if line.startswith("miga-bench")] for each in said]
    return [process.exitcode for process in processes], lines


def losing(rank, how):
    scorer = {
        "class_path": "run_workers.LosingScorer",
        "init_args": {"lost_rank": rank, "how": how},
    }
    return {"model__metrics": [scorer]}


@pytest.mark.parametrize("how", ["is killed", "vanishes"])
def test_a_rank_that_is_lost_while_all_load_is_said_in_one_line(tmp_path, how):
    """Breaks if gloo's own line is shown, or rank 0 waits for ever for a machine without power."""
    codes, lines = two_processes(tmp_path, grace=1.0, victim=1, **losing(1, how))
    assert codes == [1, -9]
    assert lines == [[GONE], []]
    assert not (tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize(
    ("rank", "line"),
    [
        (0, "input/output error (weights) (--debug shows where)"),
        (1, "process 1: OSError: [Errno 5] Input/output error: 'weights'"),
    ],
)
def test_what_fails_on_one_rank_only_is_said_by_rank_0_alone(tmp_path, rank, line):
    """Breaks if each process tells of an error that is the system's, not ours."""
    codes, lines = two_processes(tmp_path, **losing(rank, "fails"))
    assert codes == [1, 1]
    assert lines == [[f"miga-bench: {line}"], []]


def trainer(rank, count=2):
    strategy = SimpleNamespace(cluster_environment=SimpleNamespace(main_address="127.0.0.1"))
    return SimpleNamespace(
        world_size=count,
        num_nodes=1,
        is_global_zero=rank == 0,
        global_rank=rank,
        strategy=strategy,
    )


def test_an_error_of_the_system_on_rank_0_is_told_by_it_alone(monkeypatch):
    """Breaks if a full disk at run.yaml is said by every process, or loses its kind on rank 0."""
    told = []

    def broadcast(box, src, group):
        if told:
            box[:] = told
        else:
            told.extend(box)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ranks, "_everybody", lambda: "a group")
    monkeypatch.setattr(ranks.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(ranks.distributed, "get_world_size", lambda: 2)
    with pytest.raises(OSError, match="No space left"):
        ranks.agree(trainer(0), full)
    with pytest.raises(FailedError, match=r"OSError: .*No space left") as raised:
        ranks.agree(trainer(1), full)
    assert raised.value.reported


@pytest.fixture
def lines(monkeypatch):
    """Rank 0's lifeline, how another rank ties its own to it, and what ended a process."""
    ended, told = [], []
    monkeypatch.setattr(lifeline, "GRACE", 0.2)
    monkeypatch.setattr(lifeline, "TICK", 0.02)
    monkeypatch.setattr(lifeline, "_end", ended.append)

    def agree(trainer, decide):
        if not told:
            told.append(decide())
        return told[0]

    monkeypatch.setattr(lifeline, "agree", agree)
    first = Lifeline(trainer(0, 3))
    yield first, lambda rank: Lifeline(trainer(rank, 3)), ended
    first.close()


def soon(condition, within=20.0):
    until = time.monotonic() + within
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def vanish(other):
    """End a line as a machine does that is gone."""
    other._closed = True  # its own thread does not take it for the end of rank 0
    other._line.shutdown(socket.SHUT_RDWR)


def test_a_line_that_ends_without_goodbye_ends_rank_0_where_it_waits_for_that_rank(lines):
    """Breaks if rank 0 waits for a machine that is gone, or gives up a share of its own for it."""
    first, tie, ended = lines
    vanish(tie(2))
    assert soon(lambda: first.lost)
    assert set(first.lost) == {2}
    time.sleep(0.5)
    assert not ended  # it makes its own videos
    with ranks.waiting_for([0, 1]):
        time.sleep(0.5)
    assert not ended  # a team of others
    with ranks.waiting_for(range(3)):
        assert soon(lambda: ended)
    assert ended[0].startswith("another process of the run is gone")


def test_a_line_that_ends_with_goodbye_is_no_loss(lines):
    """Breaks if a rank that is done is taken for one that is gone, at either end."""
    first, tie, ended = lines
    one, other = tie(1), tie(2)
    assert soon(lambda: len(first._lines) == 2)
    one.close()
    with ranks.waiting_for(range(3)):
        assert soon(lambda: len(first._lines) == 1)
        time.sleep(0.5)
    assert not first.lost
    first.close()  # says goodbye, too: the other may be late
    assert soon(lambda: not other.watching)
    assert not other.torn
    assert not ended


def test_a_stranger_at_rank_0s_port_is_no_rank(lines):
    """Breaks if whoever looks for open ports ends a run."""
    first, tie, _ = lines
    for hello in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(20)):
        stranger = socket.create_connection(first._door.getsockname())
        with contextlib.suppress(OSError):
            stranger.sendall(hello)
        stranger.close()
    vanish(tie(1))
    assert soon(lambda: first.lost)
    time.sleep(0.2)
    assert set(first.lost) == {1}
