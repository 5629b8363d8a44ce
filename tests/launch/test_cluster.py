"""Scripts for clusters: what they start, how they go on, and what checkers say of them."""

import math
import os
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = _ROOT / "launch" / "cluster"
_SCRIPTS = sorted(
    path.relative_to(_ROOT).as_posix()
    for pattern in ("launch/*.sh", "launch/cluster/*.s*", "experiments/*/*.sh")
    for path in _ROOT.glob(pattern)
)
_SETTINGS = {"PRESET", "STAGES", "DATA", "WORKDIR", "START", "EXPORT", "MESH", "PROCESSES", "MORE"}


def _text(name):
    return (_FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", _SCRIPTS)
def test_shellcheck_finds_nothing(script):
    program = pathlib.Path(sys.executable).parent / "shellcheck"
    command = [program, "-x", "-P", "SCRIPTDIR", script]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def python(tmp_path):
    """A program in place of Python: it logs its arguments and ends as ENDS says, in turn."""
    program = tmp_path / "python"
    program.write_text(
        "#!/usr/bin/env bash\n"
        'echo "$*" >> "$LOG"\n'
        'count=$(wc -l < "$LOG")\n'
        'read -ra ends <<< "$ENDS"\n'
        'exit "${ends[count - 1]}"\n'
    )
    program.chmod(0o755)
    return program


def _start(script, python, tmp_path, ends, **settings):
    environment = {
        "PATH": os.environ["PATH"], "PYTHON": str(python), "LOG": str(tmp_path / "log"),
        "ENDS": ends, "DATA": "/d", "WORKDIR": "/w", "START": "/s", **settings,
    }
    done = subprocess.run(
        [_FOLDER / script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    log = tmp_path / "log"
    return done, log.read_text().splitlines() if log.exists() else []


def _flags(line):
    return dict(re.findall(r"--(\w+)=(\S*)", line))


def test_stages_come_in_their_order(python, tmp_path):
    done, lines = _start(
        "stages.sh", python, tmp_path, "0 0 0", MESH="fsdp=8", PROCESSES="auto",
        MORE="--set remat=True --set lora.rank=8",
    )
    assert done.returncode == 0, done.stderr
    assert [_flags(line)["stage"] for line in lines] == ["teacher", "student", "distill"]
    for line in lines:
        assert line.startswith("launch/train.py --preset=tm-18b")
        assert line.endswith("--set remat=True --set lora.rank=8")
        found = _flags(line)
        assert (found["mesh"], found["hosts"], found["data"]) == ("fsdp=8", "auto", "/d")
        assert (found["workdir"], found["export"]) == ("/w", "/w/weights")
    assert _flags(lines[0])["start"] == "/s" and "--start" not in lines[1] + lines[2]


def test_a_stage_that_stops_ends_the_script_with_its_status(python, tmp_path):
    done, lines = _start("stages.sh", python, tmp_path, "0 143 0")
    assert done.returncode == 143 and len(lines) == 2


@pytest.mark.parametrize("missing", ["DATA", "WORKDIR", "START"])
def test_what_is_required_is_asked_for(python, tmp_path, missing):
    done, lines = _start("stages.sh", python, tmp_path, "0 0 0", **{missing: ""})
    assert done.returncode == 1 and not lines
    assert f"{missing}: name the" in done.stderr


@pytest.mark.parametrize("ends, status, started", [
    ("139 0 0 0", 0, 4), ("139 139 139", 139, 3), ("1", 1, 1), ("0 143", 143, 2),
])
def test_a_node_starts_again_after_a_crash_only(python, tmp_path, ends, status, started):
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    path = f"{sleep.parent}:{os.environ['PATH']}"
    done, lines = _start("node.sh", python, tmp_path, ends, ATTEMPTS="3", PATH=path)
    assert (done.returncode, len(lines)) == (status, started), done.stderr
    assert all(_flags(line)["preset"] == "wan-1.3b" for line in lines)


def test_scripts_set_what_stages_read():
    """And every flag of stages.sh is one of launch/train.py."""
    stages, train = _text("stages.sh"), (_ROOT / "launch" / "train.py").read_text()
    described = set(re.findall(r"^#   ([A-Z]+) ", stages, re.M))
    assert described == _SETTINGS
    known = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', train)) | {"mesh"}
    assert set(re.findall(r"--(\w+)=", stages)) <= known
    for name in ("node.sh", "slurm.sbatch"):
        given = set(re.findall(r"^export ([A-Z]+)=", _text(name), re.M))
        assert {"PRESET", "DATA", "WORKDIR", "START", "MESH"} <= given <= {*_SETTINGS, "PYTHON"}
    given = set(re.findall(r"^  ([A-Z]+)=", _text("tpu_pod.sh"), re.M))
    assert {"PRESET", "DATA", "WORKDIR", "START", "MESH", "PROCESSES"} <= given
    assert given <= {*_SETTINGS, "PYTHON"}


def test_slurm_has_one_process_for_each_gpu():
    """JAX gives a process of SLURM the device of its local index."""
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", _text("slurm.sbatch"), re.M))
    assert given["ntasks-per-node"] == given["gpus-per-node"] and "gpus-per-task" not in given
    count = int(given["nodes"]) * int(given["gpus-per-node"])
    mesh = dict(re.findall(r"(fsdp|seq)=(\d+)", _text("slurm.sbatch")))
    assert math.prod(map(int, mesh.values())) == count


def test_the_jobset_s_job_is_valid_and_fits_its_topology():
    document = yaml.safe_load(_text("jobset.yaml"))
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and document["kind"] == "JobSet"
    assert document["spec"].keys() == {"network", "failurePolicy", "replicatedJobs"}
    assert document["spec"]["network"].keys() == {"enableDNSHostnames", "subdomain"}
    [replicated] = document["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    job = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"},
        **replicated["template"],
    }
    kubernetes_validate.validate(job, "1.33", strict=True)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    [container] = pod["containers"]
    chips = math.prod(int(n) for n in topology.split("x"))
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    values = {one["name"]: one["value"] for one in container["env"]}
    assert set(values) <= _SETTINGS and values["PROCESSES"] == "auto"
    sizes = re.findall(r"=(\d+)", values["MESH"])
    assert math.prod(map(int, sizes)) == chips
    assert (_ROOT / container["command"][0]).exists()
