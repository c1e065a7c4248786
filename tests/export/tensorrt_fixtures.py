"""Export folders to build engines of, made in no time, and a stand-in for an engine without a GPU."""

import ctypes
import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from miga_bench.export import probe
from miga_bench.export.sidecar import Port, Sidecar, sha256
from miga_bench.export.tensorrt.runtime import LoadedEngine

CHANNELS, SIDE, TEXT, WIDTH, PAIRS = 4, 8, 7, 16, 12
TOKENS = SIDE * SIDE // 4
SIZES = {
    "least": {"batch": 1, "frames": 2},
    "usual": {"batch": 2, "frames": 5},
    "most": {"batch": 4, "frames": 8},
}


def port(*shape) -> Port:
    return Port.input("float32", shape, SIZES["least"], SIZES["usual"], SIZES["most"])


def wan_ports() -> dict[str, Port]:
    table = port(1, f"{TOKENS}*frames", 1, PAIRS)
    return {
        "latents": port("batch", CHANNELS, "frames", SIDE, SIDE),
        "timesteps": port("batch", "frames"),
        "text": port("batch", TEXT, WIDTH),
        "cos": table,
        "sin": table,
    }


def vc2_ports() -> dict[str, Port]:
    ports = wan_ports()
    return {
        **{name: ports[name] for name in ("latents", "timesteps", "text")},
        "fps": port("batch"),
    }


def describe(folder: Path, ports: dict[str, Port], **changes) -> Sidecar:
    """Write the sidecar of a ``denoiser.onnx`` that lies in the folder."""
    files = [path.name for path in sorted(folder.glob("denoiser.onnx*"))]
    probes = [probe.NAME] if (folder / probe.NAME).is_file() else []
    facts = {
        "graph": "denoiser",
        "onnx": "denoiser.onnx",
        "external_data": [name for name in files if name != "denoiser.onnx"],
        "backbone": {"name": "tiny", "family": "wan", "weights_hash": "0" * 64},
        "precision": "fp32",
        "opset": 23,
        "inputs": ports,
        "outputs": {"prediction": Port("float32", list(ports["latents"].shape))},
        "operators": {"Mul": 2},
        "sha256": {name: sha256(folder / name) for name in [*files, *probes]},
        "probe": probes[0] if probes else None,
        "code": {},
        "parity": [],
        "tolerance": 1e-4,
        **changes,
    }
    sidecar = Sidecar(folder, **facts)
    sidecar.write()
    return sidecar


def small_export(folder: Path, scale: float = 0.5, operator: str = "Mul", domain="") -> Sidecar:
    """Write an export of ``latents * timesteps * scale + fps``, the weight in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = vc2_ports()
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, p.shape) for name, p in ports.items()
    ]
    output = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ports["latents"].shape)
    weight = np.full((CHANNELS, 1, SIDE, SIDE), scale, np.float32)
    axes = np.array([1, 3, 4])
    nodes = [
        helper.make_node("Unsqueeze", ["timesteps", "axes"], ["t"], name="spread"),
        helper.make_node(operator, ["latents", "t"], ["timed"], name="by_time", domain=domain),
        helper.make_node("Mul", ["timed", "weight"], ["weighted"], name="by_weight"),
        helper.make_node("Unsqueeze", ["fps", "fps_axes"], ["rate"], name="spread_rate"),
        helper.make_node("Add", ["weighted", "rate"], ["prediction"], name="add_rate"),
    ]
    tensors = {"weight": weight, "axes": axes, "fps_axes": np.array([1, 2, 3, 4])}
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "denoiser", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save_model(
        model, folder / "denoiser.onnx", save_as_external_data=True, location="denoiser.onnx.data"
    )
    return describe(folder, ports, backbone={"name": "t", "family": "videocrafter2"})


def probed(sidecar: Sidecar, answer, frames: int = 3) -> Sidecar:
    """Return a small export again, with a probe of so many frames; ``answer`` gives its answer."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "latents": torch.randn(1, CHANNELS, frames, SIDE, SIDE, generator=generator).half().float(),
        "timesteps": torch.rand(1, frames, generator=generator) * 1000,
        "text": torch.zeros(1, TEXT, WIDTH),
        "fps": torch.tensor([8.0]),
    }
    probe.save({**given, probe.ANSWER: answer(given)}, sidecar.folder)
    return describe(sidecar.folder, sidecar.inputs, backbone=sidecar.backbone)


def small_answer(given, scale=0.5):
    """Return what a small export computes."""
    timed = given["latents"] * given["timesteps"][:, None, :, None, None] * scale
    return timed + given["fps"][:, None, None, None, None]


def stand_in(folder: Path, profiles, kernels=None) -> LoadedEngine:
    """Return a ``LoadedEngine`` whose engine reads and writes at addresses, computed by ONNX Runtime.

    It has the part of TensorRT's interface that the runtime uses, and is as strict: memory, profile,
    shapes and addresses have to be there before it runs. With ``kernels`` it is tensorrt_rtx's.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "denoiser.onnx"), providers=["CPUExecutionProvider"]
    )
    engine = _Engine(session, profiles)
    module = SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
    library = SimpleNamespace(
        name="tensorrt" if kernels is None else "tensorrt_rtx",
        module=module,
        targets=() if kernels is None else ("8.9",),
        failure=lambda: "the stand-in refused",
    )
    return LoadedEngine(engine, None, library, folder / "x.engine", None, kernels)


class _Engine:
    device_memory_size_v2 = 1000
    streamable_weights_size = 0
    weight_streaming_budget_v2 = None

    def __init__(self, session, profiles):
        self.session, self.profiles = session, profiles
        self.ports = {p.name: p for p in [*session.get_inputs(), *session.get_outputs()]}
        self.num_io_tensors = len(self.ports)
        self.num_optimization_profiles = len(profiles)
        self.contexts = []

    def get_tensor_name(self, number):
        return list(self.ports)[number]

    def get_tensor_mode(self, name):
        return "out" if name == "prediction" else "in"

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name="FLOAT")

    def get_tensor_profile_shape(self, name, number):
        return self.profiles[number].inputs[name]

    def create_runtime_config(self):
        return _RuntimeConfig()

    def create_execution_context(self, how):
        kernels = None
        if isinstance(how, _RuntimeConfig):
            assert how.dynamic_shapes_kernel_specialization_strategy == "eager"
            how, kernels = how.strategy, how.kernels
        assert how == "user"
        self.contexts.append(_Context(self, kernels))
        return self.contexts[-1]


class _RuntimeConfig:
    """Of tensorrt_rtx: compiled kernels, as words, are in a cache that contexts may share."""

    strategy = dynamic_shapes_kernel_specialization_strategy = kernels = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return KernelCache()

    def set_runtime_cache(self, cache):
        self.kernels = cache


class KernelCache:
    def __init__(self):
        self.words = set()

    def deserialize(self, blob):
        if not blob.startswith(b"kernels "):
            return False
        self.words = set(blob.split()[1:])
        return True

    def serialize(self):
        return b"kernels " + b" ".join(sorted(self.words))


class _Context:
    def __init__(self, engine, kernels=None):
        self.engine, self.kernels = engine, kernels
        self.memory, self.profile, self.shapes, self.addresses, self.runs = None, None, {}, {}, 0

    def update_device_memory_size_for_shapes(self):
        assert set(self.shapes) <= set(self.engine.ports)
        assert "latents" in self.shapes
        return 250 * self.shapes["latents"][0]

    def set_device_memory(self, address, size):
        assert size >= self.update_device_memory_size_for_shapes()
        self.memory = address

    def set_optimization_profile_async(self, number, stream):
        self.profile = self.engine.profiles[number]
        return True

    def set_input_shape(self, name, shape):
        if self.profile is None or not self.profile.takes({name: shape}):
            return False
        self.shapes[name] = shape
        if self.kernels is not None and name == "latents":
            self.kernels.words.add(b"x".join(b"%d" % size for size in shape))
        return True

    def get_tensor_shape(self, name):
        return self.shapes["latents"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.memory is None or set(self.addresses) != set(self.engine.ports):
            return False
        feeds = {name: _array(self.addresses[name], shape) for name, shape in self.shapes.items()}
        (result,) = self.engine.session.run(["prediction"], feeds)
        _array(self.addresses["prediction"], result.shape)[:] = result
        self.runs += 1
        return True


def _array(address, shape):
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address)).reshape(shape)


@functools.cache
def exported_wan():
    """Export a one-block Wan denoiser, once per test run; return denoiser and sidecar."""
    return export_wan(Path(tempfile.mkdtemp(prefix="exported-wan-")))


def export_wan(folder: Path, seed: int = 4):
    """Export a one-block Wan denoiser, weights beside the graph; return denoiser and sidecar."""
    from diffusers import WanTransformer3DModel
    from torch.export import Dim

    from miga_bench.backbones.wan_denoiser import WanDenoiser

    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=2 * PAIRS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=1,
    )
    denoiser = WanDenoiser(transformer).eval()
    latents = torch.randn(2, CHANNELS, 5, SIDE, SIDE)
    arguments = (latents, torch.rand(2, 5) * 1000, torch.randn(2, TEXT, WIDTH))
    batch, frames = Dim("batch", min=1, max=64), Dim("frames", min=2, max=64)
    program = torch.onnx.export(
        denoiser.network,
        (*arguments, *denoiser.rotary(latents)),
        input_names=list(wan_ports()),
        output_names=["prediction"],
        dynamo=True,
        verbose=False,
        opset_version=23,
        dynamic_shapes={
            "latents": {0: batch, 2: frames},
            "timesteps": {0: batch, 1: frames},
            "text": {0: batch},
            "cos": {1: TOKENS * frames},
            "sin": {1: TOKENS * frames},
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    program.save(folder / "denoiser.onnx", external_data=True)
    given = dict(zip(("latents", "timesteps", "text"), (x[:1] for x in arguments), strict=True))
    given |= {name: given[name].half().float() for name in probe.ROUNDED}
    with torch.no_grad():
        probe.save({**given, probe.ANSWER: denoiser(*given.values())}, folder)
    return denoiser, describe(folder, wan_ports())
