"""What pyproject.toml cannot say: a wheel carries configs and weights inside the package.

In a checkout and in a MONAI bundle they lie beside the package; `bundle/loading.py` finds both.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = ("configs/*.json", "configs/logging.conf", "models/model.pt")


class BuildWithWeights(build_py):
    """`build_py` that also copies what `CARRIED` names."""

    def run(self) -> None:
        """Copy the modules, then configs and weights; an editable install finds them in the checkout."""
        super().run()
        if self.editable_mode:
            return
        root = Path(__file__).resolve().parent
        for file in sorted(found for pattern in CARRIED for found in root.glob(pattern)):
            target = Path(self.build_lib) / "bundle" / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithWeights})
