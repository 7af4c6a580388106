"""The script that builds torchsort fails softly where it cannot be built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "install_torchsort.sh"


def test_a_failing_build_says_why_and_leaves_nothing_even_with_nvcc_among_all_other_tools(
    tmp_path: Path,
) -> None:
    """Debian's CUDA packages put nvcc into /usr/bin. A script without torchsort replaces Python."""
    tools, scratch, python = tmp_path / "bin", tmp_path / "scratch", tmp_path / "python"
    tools.mkdir()
    scratch.mkdir()
    for tool in ("sh", "mktemp", "ln", "cat", "rm"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "nvcc").write_text("#!/bin/sh\n")
    python.write_text(
        '#!/bin/sh\ncase "$*" in *pip*) echo "found nvcc: $(command -v nvcc)";; esac\nexit 1\n'
    )
    for program in (tools / "nvcc", python):
        program.chmod(0o755)
    environment = {**os.environ, "PATH": str(tools), "TMPDIR": str(scratch)}
    result = subprocess.run(
        ["/bin/sh", str(SCRIPT), str(python)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, "the trainer goes on without it"
    assert result.stderr.splitlines() == [
        "found nvcc: ",
        "torchsort could not be built (is there a C++ compiler?): "
        "the trainer will use its slower PyTorch path",
    ]
    assert not list(scratch.iterdir())
