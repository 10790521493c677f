"""The device a run is trained on, and how it computes."""

import os
import resource
import sys

import torch

from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError

# What PyTorch takes by itself: the cores, or what OMP_NUM_THREADS or a launcher allows.
DEFAULT_THREADS = torch.get_num_threads()


def select(name: str) -> torch.device:
    """The device called auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise ConfigError(
                f"device={name}: PyTorch {torch.__version__} finds no CUDA device here; "
                "use device=cpu or device=auto"
            )
        if device.index is not None and device.index >= count:
            raise ConfigError(f"device={name}: there are cuda:0 to cuda:{count - 1}")
    return device


def check(config: Config) -> torch.device:
    """The device a run is to be trained on.

    Raises:
        ConfigError: there is no such device, or it cannot compute so.
    """
    device = select(config.device)
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError("precision=tf32: is a mode of NVIDIA GPUs; use precision=float32")
    if config.cuda_graph and device.type != "cuda":
        raise ConfigError("cuda_graph=true: is for NVIDIA GPUs; use cuda_graph=false")
    return device


def captures(config: Config, device: torch.device) -> bool:
    """Whether an iteration is captured as a CUDA graph.

    Unless it is asked for: on a GPU, for the paper's nets, optimizer and way to keep maps. These
    were seen to give the same bits so; a block of one's own may do what no graph can hold.
    """
    if config.cuda_graph is not None:
        return config.cuda_graph
    others = (config.compile, config.activation_checkpointing, config.optimizer, config.extensions)
    return device.type == "cuda" and not any(others)


def set_up(config: Config, threads: int | None) -> None:
    """Sets the process's arithmetic, and the current GPU, to what the configuration says."""
    device = select(config.device)
    if device.index is not None:  # streams and captured graphs are the current GPU's
        torch.cuda.set_device(device)
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic
    # Once, for all runs of the process: PyTorch looks at it in the first matrix product alone.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    torch.set_num_threads(threads or DEFAULT_THREADS)


def describe(device: torch.device) -> str:
    """The kind of device, as provenance: cpu, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def instructions(device: torch.device) -> str | None:
    """A CPU's vector instructions, AVX2 or AVX512, which round sums differently; None of a GPU."""
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None


class PeakMemory:
    """The most memory that a run has used, from its beginning on.

    A GPU's count is begun anew. On a CPU the system counts for the process, from its start: the
    first run of a process can be told its peak, those after it cannot.
    """

    _process_is_used = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_known = device.type == "cuda" or not PeakMemory._process_is_used
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        PeakMemory._process_is_used = True

    def bytes(self) -> int | None:
        """At most in use so far: of the GPU, or of the process on a CPU; None if not known."""
        if not self.is_known:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
