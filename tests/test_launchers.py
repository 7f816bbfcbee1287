"""Sweeps whose jobs another package starts: joblib, submitit on this machine, submitit on a stand-in for Slurm.

These jobs are processes of their own, so they are real ones; without embeddings, they fail.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from revision.cli import main

SWEEP = ["align", "-m", "name=s", "seed=0,1"]
SLURM = {
    # Runs the tasks of an array behind the caller's back, but for one that it is to lose.
    "sbatch": """
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
for task in range(int(re.search(r"--array=0-(\\d+)", script).group(1)) + 1):
    if str(task) != os.environ.get("LOST_TASK"):
        job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(8 + task)}
        ranks = {"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
        nodes = {"SLURM_JOB_NODELIST": "here", "SLURM_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1"}
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["bash", sys.argv[-1]], env=os.environ | job | ranks | nodes, **silent)
print("Submitted batch job 7")
""",
    "srun": """
import os, sys
words = sys.argv[sys.argv.index("--error") + 2 :]
os.execvp(words[0], words)
""",
    "sacct": """
import os
print("JobID|State|NodeList")
for task in "01":
    print(f"7_{task}|{'NODE_FAIL' if task == os.environ.get('LOST_TASK') else 'RUNNING'}|here")
""",
    "scontrol": "print('here')",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of Slurm as submitit asks for."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text(f"#!{sys.executable}\n{script}")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        ("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("submitit", ["hydra/launcher=submitit_local"]),
    ],
)
def test_jobs_side_by_side_report_as_those_in_turn_do(
    plugin: str, launcher: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP, *launcher]) == 1
    captured = capfd.readouterr()
    for seed in (0, 1):
        assert f"failed: s/seed={seed}: `align` ended with exit code 1" in captured.out
    assert "0 of 2 jobs finished" in captured.out
    logs = [path.read_text() for path in sorted(tmp_path.rglob("*_log.err"))]  # of submitit
    assert [text.count("revision: ") for text in logs or [captured.err]] == ([1, 1] if logs else [2]), (
        "each says in one sentence what it lacks"
    )


@pytest.mark.usefixtures("slurm")
def test_jobs_of_slurm_report_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]) == 1
    captured = capfd.readouterr()
    for seed in (0, 1):
        assert f"failed: s/seed={seed}: `align` ended with exit code 1" in captured.out


@pytest.mark.usefixtures("slurm")
def test_a_job_that_slurm_loses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOST_TASK", "1")
    assert main([*SWEEP, "hydra/launcher=submitit_slurm"]) == 1
    (said,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("revision: the launcher")]
    assert "to their ends (Job 7_1 (task: 0)" in said and "the same command later runs what is missing" in said


def test_without_slurm_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SWEEP, "hydra/launcher=submitit_slurm"]) == 1
    assert "to their ends (Could not detect" in capfd.readouterr().err
