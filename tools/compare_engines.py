"""Time a bitseg model against its fp32 and int8 twins in ONNX Runtime and OpenVINO, interleaved in one process.

    python tools/compare_engines.py --preset bfcn50 --bits 1-2 --size 256x160 --threads 1 --json out.json

All engines get the same uint8 image and return the same thing, a label map of the image's size. Every round runs each
engine once, so that a drift of the machine's speed meets all of them; medians of the rounds are compared.
"""

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from llvmlite.binding import get_host_cpu_name

from bitseg.cli.common import ImageSize
from bitseg.errors import BitsegError
from bitseg.images import read_image, resize
from bitseg.model_file import find_model, read_model, write_model
from bitseg.network.graph import Network
from bitseg.network.operations import Operations
from bitseg.presets import PRESETS, preset_model

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).parent.parent))
from tools import avx2_only
from tools.provenance import current_commit, today

PHOTO = Path(__file__).parent.parent / "examples" / "astronaut.jpg"

MODEL_FILE = "model.h5"
"""Name of the model in the folder of a comparison, beside its ONNX files."""

LEAST_AGREEMENT = 0.999
"""Share of pixels on which the two fp32 engines must agree: they differ in the order of sums only."""

WARM_UP = 2
"""Runs of each engine that are not timed."""

PAUSE = 0.1
"""Seconds after which threads of other engines no longer look for work, with some to spare: 0.03 were enough."""

AWAKE = 0.1
"""Seconds for which an engine runs after a pause, however long one run is, before it is timed."""


class BitsegEngine:
    """bitseg itself."""

    name = "bitseg"

    def __init__(self, model, height, width, threads, folder):
        self.network = Network(model, Operations(threads))

    def __call__(self, image):
        shape = image.shape[:2]
        return self.network.label_map(image, shape, shape)


class OnnxRuntimeEngine:
    """ONNX Runtime, CPU, all graph optimisations."""

    name = "onnxruntime fp32"

    @staticmethod
    def load_library():
        import onnxruntime

        return onnxruntime

    def __init__(self, model, height, width, threads, folder):
        onnxruntime = self.load_library()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            self.network_file(model, height, width, folder), options, providers=["CPUExecutionProvider"]
        )

    def network_file(self, model, height, width, folder):
        return _onnx_file(model, height, width, folder)

    def __call__(self, image):
        return self.session.run(None, {"image": image[None]})[0][0].astype(np.uint8)


class OnnxRuntimeInt8Engine(OnnxRuntimeEngine):
    """ONNX Runtime with its own static quantisation, weights by channel."""

    name = "onnxruntime int8"

    def network_file(self, model, height, width, folder):
        return _int8_file(model, height, width, folder)


class OpenVinoEngine:
    """OpenVINO, CPU, latency mode, fp32."""

    name = "openvino fp32"

    @staticmethod
    def load_library():
        import openvino

        return openvino

    def __init__(self, model, height, width, threads, folder):
        core = self.load_library().Core()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.compiled = core.compile_model(self.network_file(model, height, width, folder), "CPU", options)

    def network_file(self, model, height, width, folder):
        return _onnx_file(model, height, width, folder)

    def __call__(self, image):
        return self.compiled([image[None]])[0][0].astype(np.uint8)


class OpenVinoInt8Engine(OpenVinoEngine):
    """OpenVINO on the statically quantised network."""

    name = "openvino int8"

    def network_file(self, model, height, width, folder):
        return _int8_file(model, height, width, folder)


ENGINES = {
    engine.name: engine
    for engine in (BitsegEngine, OnnxRuntimeEngine, OpenVinoEngine, OnnxRuntimeInt8Engine, OpenVinoInt8Engine)
}


def _onnx_file(model, height, width, folder):
    from tools.onnx_network import build_onnx

    path = Path(folder) / "fp32.onnx"
    if not path.exists():
        path.write_bytes(build_onnx(model, height, width).SerializeToString())
    return str(path)


def _int8_file(model, height, width, folder):
    """Quantise the convolutions with ONNX Runtime's tools, calibrated on crops of the example photo."""
    path = Path(folder) / "int8.onnx"
    if path.exists():
        return str(path)
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Crops(CalibrationDataReader):
        def __init__(self):
            photo = read_image(PHOTO)
            sides = (1.0, 0.8, 0.6, 0.4)
            crops = (photo[: int(len(photo) * side), : int(photo.shape[1] * side)] for side in sides)
            self.images = iter([{"image": resize(crop, (height, width))[None]} for crop in crops])

        def get_next(self):
            return next(self.images, None)

    prepared = Path(folder) / "prepared.onnx"
    quant_pre_process(_onnx_file(model, height, width, folder), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Crops(),
        op_types_to_quantize=["Conv", "Add", "MaxPool"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return str(path)


def time_engines(engines, image, rounds, wakes=False, warm_up=WARM_UP, asleep=None):
    """Milliseconds of every round, a dict of lists: each round times every engine once, in turn.

    wakes : bool
        Pause, and run an engine for the time `AWAKE` before it is timed. Its threads and their processors are awake
        then, and the threads of the engine before asleep: these look for more work for a while, and would take a
        processor from it.
    asleep : callable or None
        What to do after each pause, when all are asleep, and after one more at the end.
    """
    for engine in engines.values():
        for _ in range(warm_up):
            engine(image)
    times = {name: [] for name in engines}
    gc.disable()
    for _ in range(rounds):
        for name, engine in engines.items():
            if wakes:
                _pause(asleep)
                awake = time.perf_counter() + AWAKE
                while time.perf_counter() < awake:
                    engine(image)
            began = time.perf_counter()
            engine(image)
            times[name].append((time.perf_counter() - began) * 1e3)
    if wakes:
        _pause(asleep)
    gc.enable()
    return times


def _pause(asleep):
    time.sleep(PAUSE)
    if asleep is not None:
        asleep()


def peak_memory_mb(name, width, height, threads, folder):
    """Memory that an engine needs to load the network and run it once, above its idle process, MB."""
    launcher = ["-m", "tools.avx2_only"] if avx2_only.is_on() else []
    command = [sys.executable, *launcher, __file__, "--model", str(Path(folder) / MODEL_FILE)]
    command += ["--size", f"{width}x{height}", "--threads", str(threads), "--memory-of", name]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip() or f"exit status {result.returncode}"
        raise BitsegError(f"the memory of {name} cannot be measured: {reason.splitlines()[-1]}")
    return float(result.stdout.split()[-1])


def _peaks(model, width, height, threads, folder):
    """Peak memory of each engine, MB; none, and a line that says why, where it cannot be measured."""
    try:
        if not sys.platform.startswith("linux"):
            raise BitsegError("memory is measured on Linux only")
        write_model(Path(folder) / MODEL_FILE, model)
        return {name: round(peak_memory_mb(name, width, height, threads, folder), 1) for name in ENGINES}
    except BitsegError as error:
        click.echo(error, err=True)
        return {}


def _resident_kb(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise BitsegError(f"no {field} in /proc/self/status")


def _measure_memory(kind, model_file, height, width, threads, image):
    """Peak of resident memory while an engine loads the network and runs it, above the idle process.

    Idle is the process that has imported the engine and, for bitseg, compiled its kernels in a run on a small image.
    """
    folder = Path(model_file).parent
    if kind is BitsegEngine:
        kind(read_model(model_file), 64, 64, threads, folder)(np.zeros((64, 64, 3), np.uint8))
    else:
        kind.load_library()
    gc.collect()
    # Memory that was used before and is free again would hide what is needed now.
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    kind(read_model(model_file) if kind is BitsegEngine else None, height, width, threads, folder)(image)
    return (_resident_kb("VmHWM") - before) / 1024


def _cpu():
    """Name and vector features of the CPU."""
    text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    wanted = ("avx2", "fma", "avx512", "avx_vnni", "amx", "asimd", "i8mm", "sve")
    flags = lines.get("flags", lines.get("Features", ""))  # of x86, of ARM
    features = [flag for flag in flags.split() if flag.startswith(wanted)]
    name = lines.get("model name") or get_host_cpu_name()
    if avx2_only.is_on():
        name, features = f"{name}, AVX2 only", [flag for flag in features if flag in ("avx2", "fma")]
    model = [lines.get(entry) for entry in ("vendor_id", "cpu family", "model")]
    return {"name": name, "family_and_model": model, "features": features, "cores": os.cpu_count()}


def network_options(command):
    """Options of a command that say which network is timed, and on what size: those of `open_network`."""
    for option in (
        click.option("--size", default="256x160", type=ImageSize(), help="WIDTHxHEIGHT of the image."),
        click.option("--model", "model_name", help="Installed model or .h5 file, instead of a preset."),
        click.option("--bits", default="2-2", help="Weight and activation bits of a preset, W-A."),
        click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Architecture with random weights."),
    ):
        command = option(command)
    return command


def open_network(preset, bits, model_name):
    """The model that `network_options` name.

    Raises
    ------
    click.ClickException
        They name none.
    """
    if (preset is None) == (model_name is None):
        raise click.UsageError("give either --preset or --model")
    with _one_line_errors():
        return preset_model(preset, bits) if preset else read_model(find_model(model_name))


@contextmanager
def _one_line_errors():
    try:
        yield
    except BitsegError as error:
        raise click.ClickException(str(error)) from None


def example_image(size):
    """The example photo as uint8 RGB of a width and a height."""
    return resize(read_image(PHOTO), size[::-1])


def conditions(model, size, threads, rounds):
    """What the file of a measurement says of the network, the software and the machine."""
    return {
        "model": model.name,
        "bits": f"{model.architecture.weight_bits}-{model.architecture.activation_bits}",
        "size": "x".join(map(str, size)),
        "threads": threads,
        "rounds": rounds,
        "commit": current_commit(),
        "date": today(),
        "cpu": _cpu(),
        "versions": {name: version(name) for name in ("numba", "numpy", "onnxruntime", "openvino")},
        "python": platform.python_version(),
    }


@click.command(context_settings={"show_default": True})
@network_options
@click.option("--threads", default=1, type=click.IntRange(min=1), help="Threads of every engine.")
@click.option("--rounds", default=21, type=click.IntRange(min=1), help="Rounds of the interleaved run.")
@click.option("--json", "json_file", type=click.Path(), help="Write the results to this file.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory too, each engine in its own process.")
@click.option("--memory-of", type=click.Choice(sorted(ENGINES)), hidden=True)
def main(preset, bits, model_name, size, threads, rounds, json_file, memory, memory_of):
    """Compare bitseg with ONNX Runtime and OpenVINO in fp32 and int8."""
    (width, height), image = size, example_image(size)
    if memory_of:
        with _one_line_errors():
            click.echo(_measure_memory(ENGINES[memory_of], model_name, height, width, threads, image))
        return
    model = open_network(preset, bits, model_name)
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: engine(model, height, width, threads, folder) for name, engine in ENGINES.items()}
        agreement = float(np.mean(engines["onnxruntime fp32"](image) == engines["openvino fp32"](image)))
        if agreement < LEAST_AGREEMENT:
            raise click.ClickException(f"the two fp32 engines agree on {agreement:.2%} of pixels only: not compared")
        times = time_engines(engines, image, rounds, wakes=threads > 1)
        peaks = _peaks(model, width, height, threads, folder) if memory else {}
    result = _summary(times)
    result |= conditions(model, size, threads, rounds)
    result |= {"warm_up": WARM_UP, "fp32_agreement": agreement}
    if peaks:
        result["peak_memory_mb"] = peaks
    _print(result)
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + "\n")


def _summary(times):
    median = {name: statistics.median(values) for name, values in times.items()}

    def fastest(kind):
        return min(value for name, value in median.items() if name.endswith(kind))

    return {
        "ratio_fp32": round(fastest("fp32") / median["bitseg"], 2),
        "ratio_int8": round(fastest("int8") / median["bitseg"], 2),
        "median_ms": {name: round(value, 2) for name, value in median.items()},
        "spread_ms": {name: [round(min(values), 2), round(max(values), 2)] for name, values in times.items()},
    }


def _print(result):
    click.echo(
        f"{result['model']} {result['bits']}, {result['size']}, {result['threads']} thread(s), "
        f"medians of {result['rounds']} interleaved rounds on {result['cpu']['name']}"
    )
    click.echo(f"{'engine':18} {'median ms':>10} {'min':>8} {'max':>8} {'bitseg is':>10} {'memory MB':>10}")
    for name, median in result["median_ms"].items():
        low, high = result["spread_ms"][name]
        ratio = median / result["median_ms"]["bitseg"]
        used = result.get("peak_memory_mb", {}).get(name, float("nan"))
        click.echo(f"{name:18} {median:10.2f} {low:8.2f} {high:8.2f} {ratio:9.2f}x {used:10.1f}")
    click.echo(f"against the fastest fp32: {result['ratio_fp32']}x; against the fastest int8: {result['ratio_int8']}x")


if __name__ == "__main__":
    main()
