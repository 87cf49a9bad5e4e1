"""A sample of ``make kill``: runs of all five commands, killed, damaged, and continued."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kills_and_damage_lose_nothing(tmp_path):
    script = Path(__file__).with_name("kill.py")
    sample = ["--count", "10", "--flips", "20", "--truncations", "10", "--swaps", "10", "--seed", "1"]
    result = subprocess.run([sys.executable, str(script), *sample], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kills that landed: 1" in result.stdout
    assert result.stdout.endswith("nothing was wrong\n")
