"""Denoisers as TensorRT engines: built from an ONNX export, kept with a record, run as any denoiser.

    library.py   the one place that imports TensorRT, whichever there is
    profiles.py  sizes that an engine takes, and which profile a call runs on; no TensorRT
    manifest.py  what an engine is of and for; which engines may be loaded; no TensorRT
    build.py     ONNX to engine
    refit.py     an engine with other weights
    parity.py    an engine held against PyTorch
    kernels.py   what tensorrt_rtx compiles at a start, kept for the next
    runtime.py   an engine behind the ``Denoiser`` interface

Two libraries come into question. ``tensorrt`` builds for the GPU it runs on. ``tensorrt_rtx`` builds on
any machine for GeForce and RTX cards. From here on both are called the library.
"""
