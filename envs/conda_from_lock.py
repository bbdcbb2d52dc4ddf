"""Write conda-cpu.yaml, conda-cuda.yaml and the overlays for PyTorch from the lock, so that all hold its versions."""

from pathlib import Path

HERE = Path(__file__).parent
INDEX = {
    "cpu": "https://download.pytorch.org/whl/cpu",
    "cuda": "https://download.pytorch.org/whl/cu126",
}


def conda_environment(device: str) -> str:
    """Return the text of the environment for a device, cpu or cuda."""
    lock = (HERE / "lock-py3.11.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lock if line and not line.startswith("#")]
    lines = [
        "# Made from lock-py3.11.txt by `make envs`; do not edit.",
        f"name: forceuq-{device}",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
        f"      - --extra-index-url {INDEX[device]}",
        *(f"      - {package}" for package in packages),
    ]
    return "\n".join(lines) + "\n"


def torch_overlay(device: str) -> str:
    """Return the text of the file that puts the lock's PyTorch, built for a device, over an installed lock."""
    lock = (HERE / "lock-py3.11.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = [line for line in lock if line.startswith("torch==")]
    lines = [
        "# Made from lock-py3.11.txt by `make envs`; do not edit. `make setup TORCH=...` installs it over the lock.",
        f"--index-url {INDEX[device]}",
        torch,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in INDEX:
        (HERE / f"torch-{name}.txt").write_text(torch_overlay(name), encoding="utf-8")
        (HERE / f"conda-{name}.yaml").write_text(conda_environment(name), encoding="utf-8")
