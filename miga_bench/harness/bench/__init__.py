"""What the machinery costs on this machine, one page a part: ``miga-bench bench``, ``make bench``.

Nothing heavy is imported here: the command line reads the parts' names.
"""

from __future__ import annotations

# name -> what it measures; the pages have the same names
PARTS = {
    "methods": "each method on each embedded model: seconds and denoiser evaluations a frame, memory",
    "overhead": "time outside the denoiser, on a random Wan of 100M parameters",
    "plain": "our loop against a plain one: one window at a time, a solver for each frame",
    "whole": "a whole generate of 300 frames against the plain loop, loading and writing included",
    "batch": "windows in a denoiser call: 1, 2, 4, all",
    "engines": "what runs the denoiser: PyTorch, torch.compile, ONNX Runtime",
    "processes": "1, 2 and 4 processes, with videos of their own or sharing one's windows",
    "first": "until the first frame of an endless video, and the least a method allows",
    "memory": "peak memory of 5,000 frames over that of the first 500",
    "startup": "miga-bench --help",
}
REPEATS = 3
MOST_REPEATS = 100
