"""The script that builds torchsort, where it cannot be built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "install_torchsort.sh"


def test_a_build_that_fails_says_why_and_leaves_nothing_where_nvcc_lies_among_all_other_tools(
    tmp_path: Path,
) -> None:
    """As with Debian's CUDA packages, whose nvcc is in /usr/bin. In Python's place stands a script that has no torchsort."""
    tools, scratch, python = tmp_path / "bin", tmp_path / "scratch", tmp_path / "python"
    tools.mkdir()
    scratch.mkdir()
    for tool in ("sh", "mktemp", "ln", "cat", "rm"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "nvcc").write_text("#!/bin/sh\n")
    python.write_text(
        '#!/bin/sh\ncase "$*" in *pip*) echo "found nvcc: $(command -v nvcc)";; esac\nexit 1\n'
    )
    for made in (tools / "nvcc", python):
        made.chmod(0o755)
    environment = {**os.environ, "PATH": str(tools), "TMPDIR": str(scratch)}
    done = subprocess.run(
        ["/bin/sh", str(SCRIPT), str(python)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, "the trainer goes on without it"
    assert done.stderr.splitlines() == [
        "found nvcc: ",
        "torchsort could not be built (is there a C++ compiler?): the trainer will use its slower PyTorch path",
    ]
    assert not list(scratch.iterdir())
