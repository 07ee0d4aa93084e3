"""Runs PACE and its peers in turns on the same shapes with the same threads, and writes a table, a record and a plot."""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import report

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Test:
    """`batch` sequences that hold `depth` tokens, read `n_prompt` more, then make `n_gen` new ones."""

    name: str
    title: str
    n_prompt: int = 0
    n_gen: int = 0
    depth: int = 0
    batch: int = 1
    model: str = "llama-1b"
    # What weights are kept as: `bf16`, or a name of `QUANTISED`.
    weights: str = "bf16"


TESTS = [
    Test("pp512", "prefill 512", n_prompt=512),
    Test("pp2048", "prefill 2048", n_prompt=2048),
    Test("tg-d128", "decode 32 at depth 128", n_gen=32, depth=128),
    Test("tg-d2048", "decode 32 at depth 2048", n_gen=32, depth=2048),
    Test("tg-d128-b8", "decode 16 at depth 128, batch 8", n_gen=16, depth=128, batch=8),
    Test("tg-d2048-b8", "decode 16 at depth 2048, batch 8", n_gen=16, depth=2048, batch=8),
    Test("smollm2-pp512", "SmolLM2-135M, prefill 512", n_prompt=512, model="smollm2"),
    Test("pp512-int8", "prefill 512, 8 bits", n_prompt=512, weights="int8"),
    Test("pp512-int8-token", "prefill 512, 8 bits, a scale a token", n_prompt=512, weights="int8-token"),
    Test("pp512-int4", "prefill 512, 4 bits", n_prompt=512, weights="int4"),
    Test("tg-d128-int8", "decode 32 at depth 128, 8 bits", n_gen=32, depth=128, weights="int8"),
    Test("tg-d128-int4", "decode 32 at depth 128, 4 bits", n_gen=32, depth=128, weights="int4"),
    Test("tg-d128-b8-int8", "decode 16 at depth 128, batch 8, 8 bits", n_gen=16, depth=128, batch=8, weights="int8"),
    Test("tg-d128-b8-int4", "decode 16 at depth 128, batch 8, 4 bits", n_gen=16, depth=128, batch=8, weights="int4"),
]

# How PACE and llama.cpp keep weights of few bits: flags, and a type of GGUF.
QUANTISED = {
    "int8": (["--quant", "int8"], "Q8_0"),
    "int8-token": (["--quant", "int8", "--act-quant", "token"], "Q8_0"),
    "int4": (["--quant", "int4"], "Q4_0"),
}


class Peer:
    """A program that runs a test in a process of its own."""

    name = ""
    # Programs that take minutes for a test run it this often at most.
    max_rounds = 1000

    def __init__(self, options):
        self.options = options

    def runs(self, test):
        return test.model == "llama-1b" and test.weights == "bf16"

    def format(self, test):
        """What the program keeps the weights as."""
        return "bf16"

    def command(self, test):
        raise NotImplementedError

    def environment(self):
        return {}

    def rate(self, test, output):
        """Tokens per second of the whole batch."""
        return json.loads(output.strip().splitlines()[-1])["tokens_per_second"]


class Pace(Peer):
    name = "PACE"

    def runs(self, test):
        return True

    def format(self, test):
        return "bf16" if test.weights == "bf16" else QUANTISED[test.weights][0][1]

    def command(self, test):
        model = self.options.smollm2 if test.model == "smollm2" else self.options.hf
        quant = [] if test.weights == "bf16" else QUANTISED[test.weights][0]
        return [
            self.options.pace, "bench", "-m", model, "--dtype", "bf16", *quant, "-r", "1", "-o", "json",
            "-t", self.options.threads, "-p", test.n_prompt, "-n", test.n_gen, "-d", test.depth, "-b", test.batch,
        ]  # fmt: skip

    def rate(self, test, output):
        (result,) = json.loads(output)
        return result["avg_ts"]


class LlamaCpp(Peer):
    def __init__(self, options, flash):
        super().__init__(options)
        self.flash = flash
        self.name = f"llama.cpp, FA {flash}"
        self.bin = options.dir / "llama.cpp" / "build" / "bin"

    def runs(self, test):
        return True

    def format(self, test):
        if test.model == "smollm2":
            return "Q4_1"
        return "bf16" if test.weights == "bf16" else QUANTISED[test.weights][1]

    def model(self, test):
        if test.model == "smollm2":
            return self.options.smollm2
        own = self.format(test)
        return self.options.gguf if own == "bf16" else quantised(self.options, own)

    def command(self, test):
        model = self.model(test)
        common = ["-m", model, "-t", self.options.threads, "-fa", self.flash]
        if test.batch == 1:
            return [
                self.bin / "llama-bench", *common, "-r", 1, "-o", "json",
                "-p", test.n_prompt, "-n", test.n_gen, "-d", test.depth,
            ]  # fmt: skip
        # llama-bench has no batches. Flags of the chunk size are those of llama-bench.
        context = test.batch * (test.depth + test.n_gen)
        return [
            self.bin / "llama-batched-bench", *common, "-c", context, "-b", 2048, "-ub", 512,
            "-npp", test.depth, "-ntg", test.n_gen, "-npl", test.batch, "--output-format", "jsonl",
        ]  # fmt: skip

    def rate(self, test, output):
        if test.batch == 1:
            (result,) = json.loads(output)
            return result["avg_ts"]
        lines = [line for line in output.splitlines() if line.startswith("{")]
        return json.loads(lines[-1])["speed_tg"]


class PyTorch(Peer):
    name = "PyTorch"

    def command(self, test):
        shape = [test.n_prompt, test.n_gen, test.depth, test.batch, self.options.threads]
        return [self.options.dir / "venv" / "bin" / "python", HERE / "torch_peer.py", self.options.hf, *shape]


class Candle(Peer):
    name = "candle"
    max_rounds = 1

    def command(self, test):
        # A few tokens are enough where each takes seconds.
        shape = [test.n_prompt, min(test.n_gen, 4), test.depth, test.batch]
        program = self.options.dir / "candle" / "target" / "release" / "candle-peer"
        return [program, self.options.hf, *shape]

    def environment(self):
        return {"RAYON_NUM_THREADS": str(self.options.threads)}


def make_models(options):
    """In a process of its own: a program's peak of memory counts from that of the process that starts it."""
    layers = [] if options.layers is None else ["--layers", str(options.layers)]
    command = [sys.executable, str(HERE / "make_models.py"), str(options.models), *layers]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return made.stdout.splitlines()


def quantised(options, kind):
    """The GGUF file in another type, made once by llama.cpp's own program."""
    path = Path(options.gguf).with_suffix(f".{kind}.gguf")
    if not path.exists():
        program = options.dir / "llama.cpp" / "build" / "bin" / "llama-quantize"
        part = path.with_suffix(".part")
        command = [str(program), str(options.gguf), str(part), kind, str(options.threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part.rename(path)
    return path


def peers(options):
    known = {
        "pace": lambda: [Pace(options)],
        "llama.cpp": lambda: [LlamaCpp(options, "off"), LlamaCpp(options, "on")],
        "pytorch": lambda: [PyTorch(options)],
        "candle": lambda: [Candle(options)],
    }
    return [peer for name in options.peers for peer in known[name]()]


def run(options, peer, test):
    """One sample: tokens per second and the peak of memory. Whatever goes wrong is told and does not count."""
    command = [str(part) for part in [*options.prefix, *peer.command(test)]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), **peer.environment()}
    if isinstance(peer, Pace):
        environment.pop("OMP_NUM_THREADS")
    with open(options.out / "peers.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        output = process.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    try:
        if process.returncode != 0:
            raise ValueError(f"exit code {process.returncode}")
        return {"tokens_per_second": peer.rate(test, output), "peak_bytes": usage.ru_maxrss * 1024}
    except (ValueError, KeyError, IndexError) as error:
        print(f"{peer.name}, {test.name}: {error}; see {log.name}", file=sys.stderr)
        return None


def measure(options):
    """Rounds of all tests, in each of which all peers take turns, another one first each time."""
    everyone = peers(options)
    samples = {(test.name, peer.name): [] for test in options.tests for peer in everyone if peer.runs(test)}
    for number in range(options.rounds):
        for test in options.tests:
            turn = number % len(everyone)
            for peer in everyone[turn:] + everyone[:turn]:
                if not peer.runs(test) or number >= peer.max_rounds:
                    continue
                sample = run(options, peer, test)
                if sample is not None:
                    samples[test.name, peer.name].append(sample)
                    rate = sample["tokens_per_second"]
                    print(f"round {number + 1}  {test.name:14} {peer.name:18} {rate:9.2f} t/s", file=sys.stderr)
    return [row(test, everyone, samples) for test in options.tests]


def row(test, everyone, samples):
    results = []
    for peer in everyone:
        own = samples.get((test.name, peer.name), [])
        if not own:
            continue
        rates = [sample["tokens_per_second"] for sample in own]
        results.append({
            "peer": peer.name,
            "format": peer.format(test),
            "samples": rates,
            "median": statistics.median(rates),
            "peak_bytes": max(sample["peak_bytes"] for sample in own),
        })  # fmt: skip
    pace = next((result["median"] for result in results if result["peer"] == Pace.name), None)
    for result in results:
        result["pace_ratio"] = pace / result["median"] if pace else None
    return {"test": test.name, "title": test.title, "results": results}


def machine(options):
    def first(path, key):
        lines = [line for line in Path(path).read_text().splitlines() if line.startswith(key)]
        return lines[0].split(":", 1)[1].strip() if lines else "unknown"

    def version(folder):
        file = options.dir / folder / "VERSION"
        return file.read_text().strip() if file.exists() else None

    def output(*command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    torch = "import torch, transformers; print('PyTorch', torch.__version__, 'transformers', transformers.__version__)"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": os.uname().release,
        "threads": options.threads,
        "rounds": options.rounds,
        "versions": {
            "pace": f"PACE {output('git', 'describe', '--always', '--dirty')}",
            "llama.cpp": version("llama.cpp") if "llama.cpp" in options.peers else None,
            "pytorch": output(str(options.dir / "venv" / "bin" / "python"), "-c", torch)
            if "pytorch" in options.peers
            else None,
            "candle": version("candle") if "candle" in options.peers else None,
        },
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where install.sh has put the peers")
    parser.add_argument("--pace", required=True, help="the binary pace-cli")
    parser.add_argument("--models", type=Path, help="where models are made, 5 GB [default: models in --dir]")
    parser.add_argument("--layers", type=int, help="decoder layers, for a quick check of the scripts")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M in Q4_1 [default: that of install.sh]")
    parser.add_argument("--out", type=Path, help="where results go [default: results in --dir]")
    parser.add_argument("--only", default="", help="tests, separated by commas: " + ", ".join(t.name for t in TESTS))
    parser.add_argument("--peers", default="pace,llama.cpp,pytorch,candle", help="who takes part, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each test and peer")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefix", default="", help="what every command is run by, such as 'chrt -f 50'")
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name]
    unknown = set(options.peers) - {"pace", "llama.cpp", "pytorch", "candle"}
    names = [name for name in options.only.split(",") if name]
    unknown |= set(names) - {test.name for test in TESTS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads are 1 at least")
    options.tests = [test for test in TESTS if not names or test.name in names]
    options.prefix = options.prefix.split()
    options.dir = options.dir.resolve()
    options.models = options.models or options.dir / "models"
    options.smollm2 = options.smollm2 or options.dir / "smollm2-q4_1.gguf"
    options.out = options.out or options.dir / "results"
    return options


def main():
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if any(test.model == "llama-1b" for test in options.tests):
        options.hf, options.gguf = make_models(options)
    record = {"machine": machine(options), "rows": measure(options)}
    (options.out / "peers.json").write_text(json.dumps(record, indent=1) + "\n")
    table = report.markdown(record)
    (options.out / "peers.md").write_text(table)
    (options.out / "peers.svg").write_text(report.svg(record))
    print(table)


main()
